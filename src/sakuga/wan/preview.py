"""A picture of latents without the VAE's decoder: a linear map from latent channels to red, green and blue.

Latents are nearly linear in the colours that they stand for, at an eighth of the size. The map is fitted to the VAE at
hand, by least squares between latents and pictures that it encodes, so it needs no table for a model.

Shapes: N pictures, C latent channels, H height, W width.     Run: pytest tests/unit/test_engine_loop.py
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentToRgb:
    """Colours in -1..1 as `weight @ latent + bias`."""

    weight_3C: torch.Tensor
    bias_3: torch.Tensor

    def picture(self, latents_CHW: torch.Tensor, width: int, height: int) -> np.ndarray:
        """One latent frame as uint8 RGB, HWC, of the given size."""
        rgb = torch.einsum("kc,chw->khw", self.weight_3C, latents_CHW.float().cpu()) + self.bias_3[:, None, None]
        full = functional.interpolate(rgb[None], size=(height, width), mode="bicubic", antialias=True)[0]
        return ((full.permute(1, 2, 0) + 1) * 127.5).clip(0, 255).to(torch.uint8).numpy()


def fit_latent_to_rgb(encode: Callable[[torch.Tensor], torch.Tensor], pictures_NHWC: np.ndarray) -> LatentToRgb:
    """Fit the map; `encode` takes a video (3, 1, H, W) in -1..1 and gives latents (C, 1, h, w)."""
    latents, colours = [], []
    for picture in pictures_NHWC:
        image_3HW = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1
        latents_Chw = encode(image_3HW[:, None])[:, 0].float().cpu()
        small = functional.interpolate(image_3HW[None], size=latents_Chw.shape[1:], mode="area")[0]
        latents.append(latents_Chw.flatten(1).T)
        colours.append(small.flatten(1).T)
    inputs = torch.cat(latents)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    solution = torch.linalg.lstsq(inputs, torch.cat(colours)).solution.T
    return LatentToRgb(weight_3C=solution[:, :-1].contiguous(), bias_3=solution[:, -1].contiguous())
