"""What every metric asks of its frames: uint8 RGB, and two videos of one size and length.

It knows arrays, not files.     Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_fidelity.py
"""

import numpy as np
from numpy.typing import NDArray

from sakuga.errors import VideoError

Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def check_video(video_THWC: Frames, name: str = "the video") -> None:
    """Raise VideoError unless these are uint8 RGB frames, at least one of them.

    Floats are refused, not guessed at: SSIM of [0, 1] floats against a range of 255 is 1.0000 for any two videos.
    """
    if video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or video_THWC.dtype != np.uint8:
        raise VideoError(
            f"{name} has shape {video_THWC.shape} and type {video_THWC.dtype}, but the metrics take uint8 RGB frames "
            "(frames, height, width, 3): scale to 0-255 and convert"
        )
    if video_THWC.size == 0:
        raise VideoError(f"{name} has no frames (shape {video_THWC.shape}): render or choose another one")


def check_pair(ref_THWC: Frames, gen_THWC: Frames, mask_THW: Mask | None = None) -> None:
    """Raise VideoError unless both can be compared frame by frame, and the mask, if any, fits them."""
    check_video(ref_THWC, "the reference")
    check_video(gen_THWC, "the generated video")
    if len(ref_THWC) != len(gen_THWC):
        raise VideoError(
            f"the reference has {len(ref_THWC)} frames and the generated video {len(gen_THWC)}: "
            "cut both to the same length and frame rate first, one frame of shift already costs many dB"
        )
    if ref_THWC.shape != gen_THWC.shape:
        raise VideoError(
            f"the reference is {_size(ref_THWC)} and the generated video {_size(gen_THWC)}: "
            "bring both to one size first, the choice of scaler changes every figure"
        )
    if mask_THW is None:
        return
    if mask_THW.dtype != np.bool_ or mask_THW.shape != ref_THWC.shape[:3]:
        raise VideoError(
            f"the mask has shape {mask_THW.shape} and type {mask_THW.dtype}, but these videos need a boolean one of "
            f"shape {ref_THWC.shape[:3]} (frames, height, width)"
        )
    if not mask_THW.any():
        raise VideoError("the mask is empty in every frame, so there is nothing to measure: mark some pixels")


def _size(video_THWC: Frames) -> str:
    return f"{video_THWC.shape[2]}x{video_THWC.shape[1]}"
