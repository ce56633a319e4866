"""The noise schedule of Wan and the Euler step of flow matching; plain arithmetic on small tensors.

Equal to DiffSynth's `FlowMatchScheduler("Wan")` bit for bit, without its search for the step by timestep.
Run: pytest tests/unit/test_engine_schedule.py
"""

import torch

NUM_TRAIN_TIMESTEPS = 1000


def noise_levels(num_steps: int, *, shift: float, denoising_strength: float = 1.0) -> torch.Tensor:
    """Sigmas from the first step's to 0, `num_steps` + 1 of them, float32 on the CPU.

    `shift` moves steps towards the noisy end; with `denoising_strength` below 1 the schedule starts at less noise.
    """
    linear = torch.linspace(denoising_strength, 0.0, num_steps + 1)[:-1]
    return torch.cat([shift * linear / (1 + (shift - 1) * linear), torch.zeros(1)])


def euler_step(latents: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor):
    """Latents at `sigma_next`; the velocity is noise minus picture, as Wan predicts it."""
    return latents + velocity * (sigma_next - sigma)
