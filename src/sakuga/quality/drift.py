"""Long-horizon drift: how far light, colour and sharpness have moved away from the first frames.

Flicker and warp error look at neighbours, so that a fade over the whole video is 0 to both (VBench misses it, too).
Here every frame is held against the mean of the first `BASE_FRAMES`: the distance of the mean colours in CIE Lab (1 is
hardly seen, 5 is plain) and the logarithm of the sharpness, the variance of the Laplacian. Both are means over the
frame: what grows on the left and shrinks on the right is not seen, and a zoom or a scene that is meant to change
drifts rightly. Read it beside the reference's.

Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_figures.py
"""

from dataclasses import dataclass

import cv2
import numpy as np

from sakuga.quality.frames import Frames, check_video

BASE_FRAMES = 3
LAB_PER_OCTAVE = 5.0  # halving the variance of the Laplacian is a blur of about 0.4 px, as plain as 5 of Lab
LAPLACIAN_FLOOR = 1.0  # squared grey levels: rounding to 8 bits alone makes about that much


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Distances from the first frames, one per frame, and what they come to. 0 is none; there is no upper end."""

    brightness: tuple[float, ...]
    """Lab lightness less that of the first frames, with its sign: -20 is a fade to dark."""
    colour: tuple[float, ...]
    """Distance in a and b of Lab."""
    sharpness_octaves: tuple[float, ...]
    """Base-2 logarithm of the variance of the Laplacian over that of the first frames; -2 is a quarter of it left."""
    curve: tuple[float, ...]
    """All three in one distance, `LAB_PER_OCTAVE` of Lab for an octave of sharpness."""

    @property
    def mean(self) -> float:
        """Mean of the curve: the one number."""
        return float(np.mean(self.curve))

    @property
    def slope(self) -> float:
        """Rise of the straight line through the curve from the first frame to the last: near 0 for what comes back."""
        if len(self.curve) < 2:
            return 0.0
        return float(np.polyfit(np.linspace(0.0, 1.0, len(self.curve)), self.curve, 1)[0])


def drift(video_THWC: Frames) -> Drift:
    """Drift of one video; of a single frame it is 0. Raises VideoError unless these are uint8 RGB frames."""
    check_video(video_THWC)
    lab_T3 = np.array([_mean_lab(frame_HWC) for frame_HWC in video_THWC])
    sharp_T = np.log2([_sharpness(frame_HWC) + LAPLACIAN_FLOOR for frame_HWC in video_THWC])
    away_T3 = lab_T3 - lab_T3[:BASE_FRAMES].mean(0)
    octaves_T = sharp_T - sharp_T[:BASE_FRAMES].mean()
    curve_T = np.sqrt(np.square(away_T3).sum(1) + np.square(LAB_PER_OCTAVE * octaves_T))
    return Drift(
        brightness=tuple(away_T3[:, 0].tolist()),
        colour=tuple(np.hypot(away_T3[:, 1], away_T3[:, 2]).tolist()),
        sharpness_octaves=tuple(octaves_T.tolist()),
        curve=tuple(curve_T.tolist()),
    )


def _mean_lab(frame_HWC: Frames) -> np.ndarray:
    return cv2.cvtColor(frame_HWC.astype(np.float32) / 255.0, cv2.COLOR_RGB2Lab).mean((0, 1), dtype=np.float64)


def _sharpness(frame_HWC: Frames) -> float:
    grey_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey_HW, cv2.CV_64F).var())
