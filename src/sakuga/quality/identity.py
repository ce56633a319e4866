"""Identity to the first frame: how much of it is still there, wherever it has moved, without weights.

Frame t is warped back to the first one by optical flow. What can be followed there and back scores its SSIM, what
cannot scores 0; the figure is the mean over the picture. A frozen video has 1, a drawn dancer 0.7 to 0.9, somebody else
from the second frame on 0.01 to 0.2.

What it cannot see: who anybody is. A person who turns round, is covered, or leaves counts as lost just as a stranger
does, and so does ground that the camera leaves behind; a still background counts as much as the face. A step of over a
tenth of the picture from one frame to the next is lost to the flow. A change that is asked for (a photo that turns into
a fairy) scores low rightly: read it beside the reference's.

Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_figures.py
"""

from dataclasses import dataclass

import cv2
import numpy as np

from sakuga.quality.fidelity import ssim
from sakuga.quality.frames import Frames, check_video
from sakuga.quality.temporal import FLOW_MIN_SIDE, Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """How much of the first frame each later one shows, 1 for all of it."""

    mean: float
    min: float
    """The frame that shows least of it."""
    curve: tuple[float, ...]
    """Frame by frame; the first shows all of itself."""
    coverage: float
    """Mean share of the pixels that could be followed."""


def identity(video_THWC: Frames) -> Identity | None:
    """Identity of one video; None under two frames of 16x16. Raises VideoError unless these are uint8 RGB frames."""
    check_video(video_THWC)
    num_frames, height, width, _ = video_THWC.shape
    if num_frames < 2 or min(height, width) < FLOW_MIN_SIDE:
        return None
    clip = Clip(video_THWC)
    curve, coverages = [1.0], []
    forward_HW2 = back_HW2 = None
    for t in range(1, num_frames):
        # The flow to the frame before is the guess: a long way in small steps, each sought in the pictures again.
        forward_HW2, back_HW2 = clip.search(0, t, forward_HW2), clip.search(t, 0, back_HW2)
        x_HW, y_HW, seen_HW = clip.followed(forward_HW2, back_HW2)
        coverages.append(float(seen_HW.mean()))
        curve.append(_similarity(video_THWC[0], video_THWC[t], x_HW, y_HW, seen_HW) * coverages[-1])
    return Identity(
        mean=float(np.mean(curve[1:])), min=min(curve), curve=tuple(curve), coverage=float(np.mean(coverages))
    )  # fmt: skip


def _similarity(first_HWC: Frames, frame_HWC: Frames, x_HW: np.ndarray, y_HW: np.ndarray, seen_HW: np.ndarray) -> float:
    """SSIM over the pixels that were followed; 0 where none has a value."""
    border = 5  # pixels at the edge have no SSIM
    if not seen_HW[border:-border, border:-border].any():
        return 0.0
    warped_HWC = cv2.remap(frame_HWC, x_HW, y_HW, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return ssim(first_HWC[None], np.asarray(warped_HWC, dtype=np.uint8)[None], seen_HW[None]).mean
