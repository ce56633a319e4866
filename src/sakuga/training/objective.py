"""Flow matching: which noise levels are drawn, what counts how much, and the error of a velocity.

x_sigma = (1 - sigma) x_0 + sigma noise, and the model predicts noise - x_0 (Lipman et al. 2023, arXiv 2210.02747).
Noise levels are uniform over a grid that Wan's shift bends towards noise. Everything is fp32: a timestep in bf16 keeps
294 of 1000 values apart.

Shapes: B samples, S tokens, P = 4 latent pixels of a token (one frame, two rows, two columns), C latent channels.
Run: pytest tests/unit/test_training_objective.py
"""

from __future__ import annotations

import functools
import math

import torch
from torch.nn import functional

NUM_TRAIN_TIMESTEPS = 1000
PATCH_AREA = 4


def sigma_of(quantile: float, shift: float) -> float:
    """Noise level 0..1 at a quantile of the distribution.

    >>> sigma_of(0.5, 5.0), sigma_of(1.0, 5.0)
    (0.8333333333333334, 1.0)
    """
    return shift * quantile / (1 + (shift - 1) * quantile)


def quantile_of(sigma: float, shift: float) -> float:
    """The way back.

    >>> quantile_of(0.875, 5.0)
    0.5833333333333334
    """
    return sigma / (shift - (shift - 1) * sigma)


def sigma_within(quantile: float, shift: float, low: float, high: float) -> float:
    """As `sigma_of`, of the part of the distribution between two noise levels: what one expert of two is for."""
    first, last = quantile_of(low, shift), quantile_of(high, shift)
    return sigma_of(first + (last - first) * quantile, shift)


def timestep_weight(sigma: float, weighting: str) -> float:
    """How much a noise level counts.

    "wan" is DiffSynth's: a bell around the middle timestep, shifted to 0 at the noisiest and scaled to a mean of 1 over
    the uniform grid. At t = 1000 it is 0 and over t >= 900, a third of all draws, 0.28 on average.
    """
    if weighting == "none":
        return 1.0
    lowest, total = _bell_over_grid()
    return (_bell(sigma) - lowest) * NUM_TRAIN_TIMESTEPS / total


def _bell(sigma: float) -> float:
    return math.exp(-2 * (sigma - 0.5) ** 2)


@functools.lru_cache
def _bell_over_grid() -> tuple[float, float]:
    """The lowest value over Wan's grid of training timesteps, and the sum of what lies above it."""
    values = [_bell(sigma_of(1 - i / NUM_TRAIN_TIMESTEPS, 5.0)) for i in range(NUM_TRAIN_TIMESTEPS)]
    return min(values), sum(values) - NUM_TRAIN_TIMESTEPS * min(values)


def noisy(latents_BCThw: torch.Tensor, noise_BCThw: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    s = sigma_B.view(-1, 1, 1, 1, 1)
    return (1 - s) * latents_BCThw + s * noise_BCThw


def patches(x_BCThw: torch.Tensor) -> torch.Tensor:
    """(B, S, P * C), in the order of the DiT's head: row, column, channel."""
    rows = x_BCThw.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # B C T h/2 2 w/2 2
    return rows.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(1, 3)


def unpatched(x_BSP: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The way back from `patches`, to this shape."""
    _, c, t, h, w = shape
    rows = x_BSP.unflatten(2, (2, 2, c)).unflatten(1, (t, h // 2, w // 2))  # B T h/2 w/2 2 2 C
    return rows.permute(0, 6, 1, 2, 4, 3, 5).reshape(shape)


def velocity_error(
    velocity_BSP: torch.Tensor, target_BSP: torch.Tensor, weight_BSP: torch.Tensor, whole_weight_B: torch.Tensor
) -> torch.Tensor:
    """Weighted mean squared error of each sample, (B,): of these tokens, over the weight of all tokens.

    `weight_BSP` has a number a latent pixel, the same for all channels.
    """
    squared = (velocity_BSP.float() - target_BSP).square().unflatten(2, (PATCH_AREA, -1)).mean(3)
    return (squared * weight_BSP).sum((1, 2)) / whole_weight_B


def pixel_weights(
    latents_BCThw: torch.Tensor, layers_BGThw: torch.Tensor | None, gains_G: torch.Tensor | None
) -> torch.Tensor:
    """(B, 1, T, h, w): 1, and more where layers are that count more; their shares are uint8 of 255."""
    plain = torch.ones_like(latents_BCThw[:, :1])
    if layers_BGThw is None or gains_G is None:
        return plain
    shares = layers_BGThw.float() / 255
    return plain + (shares * gains_G.view(1, -1, 1, 1, 1)).sum(1, keepdim=True)


def pad_tokens(x_BSP: torch.Tensor, num_front: int) -> torch.Tensor:
    """Zeros in front, for tokens of a reference frame that are no part of the target."""
    return functional.pad(x_BSP, (0, 0, num_front, 0)) if num_front else x_BSP
