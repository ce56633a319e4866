"""Frames of decoded video, and the drawn pictures that previews are fitted to.

Shapes: C channels, T frames, H height, W width.     Run: pytest tests/unit/test_engine_local.py
"""

import numpy as np
import torch


def to_frames(video_CTHW: torch.Tensor) -> np.ndarray:
    """Decoded video in -1..1 to uint8 THWC, cut off below the decimal point as DiffSynth does."""
    scaled = ((video_CTHW.permute(1, 2, 3, 0) + 1) * 127.5).clip(0, 255)
    return scaled.to(device="cpu", dtype=torch.uint8).numpy()


def preview_pictures() -> np.ndarray:
    """Drawn pictures of both worlds to fit previews to, (16, 64, 64, 3): any VAE encodes them in a second."""
    from sakuga.synth import make_sample

    return np.stack(
        [
            make_sample(seed, world, width=64, height=64, num_frames=5).video_THWC[-1]
            for seed in range(8)
            for world in ("live", "fairy")
        ]
    )
