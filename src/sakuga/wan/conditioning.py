"""Image conditioning in Wan's 36-channel form: which frames are known, and what they look like.

`y` has 20 channels: 4 that say for each latent frame which of its 4 video frames are given, and 16 of the encoded
video in which unknown frames are grey. DiffSynth's pipeline builds it only when there is a first frame; a 36-channel
model without an image then fails, so the case without any is ours: mask 0, an all-grey video.

Shapes: B batch, C channels, T video frames, H and W pixels; y_BCTHW has (T-1)/4+1 frames of H/8 x W/8.
Run: pytest tests/unit/test_conditioning.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch

VaeEncode = Callable[[torch.Tensor], torch.Tensor]
"""Video (3, T, H, W) in -1..1 to normalised latents (16, T', H/8, W/8)."""


def frame_mask(num_frames: int, height: int, width: int, *, first: bool, last: bool) -> torch.Tensor:
    """Mask channels (4, T', H/8, W/8): the first video frame fills a latent frame alone, so it counts four times."""
    mask_1THW = torch.zeros(1, num_frames, height // 8, width // 8)
    if first:
        mask_1THW[:, 0] = 1
    if last:
        mask_1THW[:, -1] = 1
    repeated = torch.cat([mask_1THW[:, :1].repeat_interleave(4, dim=1), mask_1THW[:, 1:]], dim=1)
    return repeated.view(1, -1, 4, height // 8, width // 8).transpose(1, 2)[0].contiguous()


def known_frames(
    first_CHW: torch.Tensor | None, last_CHW: torch.Tensor | None, num_frames: int, height: int, width: int
) -> torch.Tensor:
    """Video (3, T, H, W) in -1..1 that holds what is known and grey (0) elsewhere."""
    video_CTHW = torch.zeros(3, num_frames, height, width)
    if first_CHW is not None:
        video_CTHW[:, 0] = first_CHW
    if last_CHW is not None:
        video_CTHW[:, -1] = last_CHW
    return video_CTHW


def image_conditioning(
    encode: VaeEncode,
    first_CHW: torch.Tensor | None,
    last_CHW: torch.Tensor | None,
    *,
    num_frames: int,
    height: int,
    width: int,
) -> torch.Tensor:
    """`y` (1, 20, T', H/8, W/8) for a text- (no frame), image- (first) or first-and-last-frame-to-video render.

    With a first frame it equals DiffSynth's `WanVideoUnit_ImageEmbedderVAE`.
    """
    mask = frame_mask(num_frames, height, width, first=first_CHW is not None, last=last_CHW is not None)
    latents = encode(known_frames(first_CHW, last_CHW, num_frames, height, width))
    return torch.cat([mask.to(latents), latents]).unsqueeze(0)
