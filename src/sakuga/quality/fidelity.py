"""PSNR and SSIM of a video against a reference, over all pixels or over a mask.

PSNR works on exact integer sums, never on uint8 differences: these wrap round (10 - 250 is 16, and the square of 16 is
0), which is how unrelated videos come to be published with 27.9 dB instead of 7.75. Both metrics agree with
scikit-image to 1e-9. They compare frame n with frame n, so they say little about free generation: one frame of shift
can cost as much as another video.

Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_fidelity.py
"""

import math
from dataclasses import dataclass

import numpy as np

from sakuga.errors import VideoError
from sakuga.quality.frames import Frames, Mask, check_pair

CAP_DB = 100.0  # Identical frames would be infinite, which spoils every mean; 8-bit codecs stay below 60 dB.
SSIM_SIGMA = 1.5  # Wang et al. 2004: a Gaussian window of 11x11, sigma 1.5
SSIM_WINDOW = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Psnr:
    """Peak signal-to-noise ratio of 8-bit RGB, in dB; no figure is above CAP_DB, which identical frames have."""

    mean_db: float
    """Mean of the frames: what papers print. It hides bad frames (45.4 dB with one bad frame in 16)."""
    pooled_db: float
    """From the mean squared error of the whole video: the same bad frame gives 16.7 dB."""
    min_db: float
    """The worst frame."""
    per_frame_db: tuple[float | None, ...]
    """None where the mask is empty in that frame; such frames do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssim:
    """Structural similarity in RGB, 1 for identical frames; may be negative."""

    mean: float
    min: float
    per_frame: tuple[float | None, ...]
    """None where the mask is empty in that frame; such frames do not count."""


def decibels(mse: float) -> float:
    """PSNR of a mean squared error of 8-bit samples, at most CAP_DB.

    >>> decibels(65025.0), decibels(0.0)
    (0.0, 100.0)
    """
    return CAP_DB if mse == 0.0 else min(CAP_DB, 10.0 * math.log10(255.0**2 / mse))


def psnr(ref_THWC: Frames, gen_THWC: Frames, mask_THW: Mask | None = None) -> Psnr:
    """PSNR per frame, mean, pooled and minimum; with a mask, over its pixels only.

    Raises VideoError when sizes, lengths or types differ, or when the mask is empty everywhere.
    """
    check_pair(ref_THWC, gen_THWC, mask_THW)
    squares: list[int] = []
    counts: list[int] = []
    for t, (ref_HWC, gen_HWC) in enumerate(zip(ref_THWC, gen_THWC, strict=True)):
        diff = np.subtract(ref_HWC, gen_HWC, dtype=np.int32)
        square = diff * diff
        if mask_THW is not None:
            square = square[mask_THW[t]]
        squares.append(int(square.sum(dtype=np.int64)))
        counts.append(square.size)
    per_frame = tuple(decibels(s / n) if n else None for s, n in zip(squares, counts, strict=True))
    measured = [db for db in per_frame if db is not None]
    return Psnr(
        mean_db=math.fsum(measured) / len(measured),
        pooled_db=decibels(sum(squares) / sum(counts)),
        min_db=min(measured),
        per_frame_db=per_frame,
    )


def ssim(ref_THWC: Frames, gen_THWC: Frames, mask_THW: Mask | None = None) -> Ssim:
    """SSIM as in Wang et al. 2004 (scikit-image, Gaussian window, population covariance, range 255), mean over RGB.

    With a mask: the mean of the SSIM map over its pixels. The map lacks a border of 5 pixels, where the window would
    hang over the edge, so a full mask gives the same figure as none. Raises VideoError as `psnr`, and under 11x11.
    """
    from skimage.metrics import structural_similarity  # 0.4 s to import, more than all of PSNR

    check_pair(ref_THWC, gen_THWC, mask_THW)
    _, height, width, _ = ref_THWC.shape
    if min(height, width) < SSIM_WINDOW:
        raise VideoError(f"SSIM needs frames of at least {SSIM_WINDOW}x{SSIM_WINDOW}, these are {width}x{height}")
    border = SSIM_WINDOW // 2
    inner = (slice(border, height - border), slice(border, width - border))
    per_frame: list[float | None] = []
    for t, (ref_HWC, gen_HWC) in enumerate(zip(ref_THWC, gen_THWC, strict=True)):
        mean, map_HWC = structural_similarity(
            ref_HWC,
            gen_HWC,
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
            full=True,
        )
        if mask_THW is None:
            per_frame.append(float(mean))
        else:
            chosen = map_HWC[inner][mask_THW[t][inner]]
            per_frame.append(float(chosen.mean()) if chosen.size else None)
    measured = [value for value in per_frame if value is not None]
    if not measured:
        raise VideoError(
            f"the mask lies within {border} pixels of the edge, where SSIM has no value: mark inner pixels"
        )
    return Ssim(mean=math.fsum(measured) / len(measured), min=min(measured), per_frame=tuple(per_frame))
