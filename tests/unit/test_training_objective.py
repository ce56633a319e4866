"""Noise levels, weights and errors, against DiffSynth's own numbers where it has some."""

import doctest

import pytest
import torch

from sakuga.training import objective
from sakuga.training.objective import patches, quantile_of, sigma_of, sigma_within, timestep_weight, velocity_error


def test_weights_are_those_of_diffsynth():
    from diffsynth.diffusion import FlowMatchScheduler

    scheduler = FlowMatchScheduler("Wan")
    scheduler.set_timesteps(1000, training=True)
    for timestep in scheduler.timesteps[::37]:
        expected = float(scheduler.training_weight(timestep))
        assert timestep_weight(float(timestep) / 1000, "wan") == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert timestep_weight(1.0, "none") == 1.0


def test_levels_are_those_of_diffsynth():
    from diffsynth.diffusion import FlowMatchScheduler

    scheduler = FlowMatchScheduler("Wan")
    scheduler.set_timesteps(1000, training=True)
    ours = [sigma_of(1 - i / 1000, 5.0) for i in range(1000)]
    assert torch.allclose(torch.tensor(ours), scheduler.sigmas, atol=1e-6)


def test_an_expert_gets_its_part_of_the_distribution():
    assert sigma_within(0.0, 5.0, 0.875, 1.0) == pytest.approx(0.875)
    assert sigma_within(1.0, 5.0, 0.0, 0.875) == pytest.approx(0.875)
    # 41.7 % of all draws lie at 0.875 and above.
    assert 1 - quantile_of(0.875, 5.0) == pytest.approx(0.417, abs=1e-3)


def test_patches_are_in_the_order_of_the_head():
    from diffsynth.models.wan_video_dit import WanModel

    x = torch.randn(2, 16, 3, 4, 6)
    flat = patches(x)
    assert flat.shape == (2, 3 * 2 * 3, 64)
    model = type("Model", (), {"patch_size": (1, 2, 2)})()
    assert torch.equal(WanModel.unpatchify(model, flat, (3, 2, 3)), x)


def test_error_is_the_weighted_mean():
    velocity, target = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    weight = torch.rand(2, 5, 4)
    found = velocity_error(velocity, target, weight, weight.sum((1, 2)))
    squared = (velocity - target).square().unflatten(2, (4, 4)).mean(3)
    assert torch.allclose(found, (squared * weight).sum((1, 2)) / weight.sum((1, 2)))
    ones = torch.ones_like(weight)
    plain = velocity_error(velocity, target, ones, ones.sum((1, 2)))
    assert torch.allclose(plain, (velocity - target).square().mean((1, 2)))


def test_layers_count_more_where_they_are():
    latents, layers = torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 3, 1, 2, 2, dtype=torch.uint8)
    layers[0, 1, 0, 0, 0] = 255
    weight = objective.pixel_weights(latents, layers, torch.tensor([0.0, 2.0, 0.0]))
    assert weight[0, 0, 0].tolist() == [[3.0, 1.0], [1.0, 1.0]]


def test_examples():
    assert doctest.testmod(objective).failed == 0
