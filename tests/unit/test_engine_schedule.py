"""The noise schedule: DiffSynth's numbers bit for bit, and Euler steps that arrive where the velocity points."""

from itertools import pairwise

import pytest
import torch
from diffsynth.diffusion.flow_match import FlowMatchScheduler

from sakuga.engine.schedule import NUM_TRAIN_TIMESTEPS, euler_step, noise_levels


@pytest.mark.parametrize("num_steps", [1, 2, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_noise_levels_are_those_of_diffsynth(num_steps, shift, strength):
    theirs = FlowMatchScheduler("Wan")
    theirs.set_timesteps(num_steps, denoising_strength=strength, shift=shift)
    ours = noise_levels(num_steps, shift=shift, denoising_strength=strength)
    assert torch.equal(ours[:-1], theirs.sigmas)
    assert torch.equal(ours[:-1] * NUM_TRAIN_TIMESTEPS, theirs.timesteps)
    assert len(ours) == num_steps + 1
    assert ours[-1] == 0


def test_noise_falls_and_a_shift_keeps_it_longer():
    plain, shifted = noise_levels(20, shift=1.0), noise_levels(20, shift=5.0)
    assert (plain.diff() < 0).all()
    assert (shifted.diff() < 0).all()
    assert (shifted[1:-1] > plain[1:-1]).all()


def test_euler_steps_along_a_constant_velocity_reach_the_picture(seed):
    generator = torch.Generator().manual_seed(seed)
    # In fp64: the sum of 20 steps then leaves 1e-15 of rounding, and the tolerance of 1e-12 hides no wrong step.
    noise, picture = (torch.randn(1, 4, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    sigmas = noise_levels(20, shift=5.0).double()
    latents = noise
    for sigma, sigma_next in pairwise(sigmas):
        latents = euler_step(latents, noise - picture, sigma, sigma_next)
    assert torch.allclose(latents, picture, rtol=0, atol=1e-12)
