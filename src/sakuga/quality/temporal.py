"""What time does to a video: flicker, motion and warp error, from dense optical flow. One video, no reference.

**Flicker** is the motion-compensated spike of Kokaram et al., "Detection of missing data in image sequences" (IEEE
Trans. Image Processing 4(11), 1995): follow each pixel by optical flow to a frame before and one after; if it is
brighter than both, or darker than both, the smaller of the two differences is flicker, else 0. So motion, fades, cuts
and what comes into view (which agrees with one side) count next to nothing, whereas brightness that goes up and down,
boiling texture and noise count. The plain frame difference fails at that: to it a pan is 0.06 and a visible flicker of
5 levels 0.02 (here 0.0005 and 0.02). Each pixel takes the worse of two spacings: one frame sees a period of 2, two
frames see a period of 4, the beat of a VAE that makes 4 frames from one latent. Slower pulsing is not flicker here, and
what really twinkles or beats its wings every 3 frames is: read it beside the reference's. Lower is better (VBench's
temporal flickering runs the other way).

**Motion** is the mean speed in pixels per frame, over all pixels, where pixels without texture count 0: there the flow
is only spread in from edges, and a flat disc on a flat ground would move 4.5 times too much (without them 1.1 times).
Steps of more than about a tenth of the picture are underestimated; noise moves a little. Compare at one size and frame
rate only. A frozen video has motion 0 and no flicker: that is why one is never shown without the other.

**Warp error** is that of Lai et al. 2018 ("Learning blind video temporal consistency"): mean squared difference, in
[0, 1] RGB, between a frame and the next one warped back to it, where forward and backward flow agree. Blur lowers it.

Flow: OpenCV's DIS, medium preset, no weights; its result does not depend on the number of threads. All figures together
cost 0.01 CPU seconds a frame at 128x128 and 0.4 at 1280x720.
Shapes: T frames, H, W, C = 3 (RGB); L luma.     Run: pytest tests/unit/test_quality_temporal.py
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sakuga.errors import VideoError
from sakuga.quality.frames import Frames, check_video

Plane = NDArray[np.float32]

FLOW_MIN_SIDE = 16  # two patches of 8; under that OpenCV 5.0 crashes (15x64: SIGSEGV) or raises, by the other side
FLICKER_SPACINGS = (1, 2)
TEXTURE_MIN = 4.0  # (grey levels per pixel)^2, mean over 9x9: an edge of 8 levels passes, 8-bit rounding (0.1) does not
# A step is frozen when no 16x16 block changes by one level. The whole-frame mean of ffmpeg's freezedetect (0.255
# levels) would take a small slow figure on a still ground for a freeze.
FROZEN_BLOCK, FROZEN_LEVELS = 16, 1.0
LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # BT.709


@dataclass(frozen=True, slots=True, kw_only=True)
class Temporal:
    """How a video behaves in time. None: too short or too small to say, never a guess."""

    flicker: float | None
    """0 none, 1 black and white in turn; 0.02 is 5 of 255 levels. Needs 3 frames."""
    motion: float | None
    """Mean speed of textured pixels, px/frame over the whole frame; exactly 0 for a frozen video. Needs 2 frames."""
    frozen_share: float | None
    """Share of steps that repeat the frame before, 0 to 1, told with a tolerance for codecs. Needs 2 frames."""
    warp_error: float | None
    """Mean squared, [0, 1] RGB; None also where no pixel could be followed both ways. Needs 2 frames."""
    warp_coverage: float | None
    """Share of pixels that the warp error saw. Low means chaos: then the warp error itself says little."""


def temporal(video_THWC: Frames) -> Temporal:
    """All figures of one video from one set of flows. Raises VideoError unless these are uint8 RGB frames."""
    check_video(video_THWC)
    num_frames, height, width, _ = video_THWC.shape
    if num_frames < 2 or min(height, width) < FLOW_MIN_SIDE:
        return Temporal(flicker=None, motion=None, frozen_share=None, warp_error=None, warp_coverage=None)
    clip = Clip(video_THWC)
    spikes: list[float | None] = []
    errors: list[float | None] = []
    coverages, speeds, frozen = [], [], []
    for t in range(num_frames - 1):
        clip.forget_before(t)
        if t > 0:
            spikes.append(_spike(clip, t))
        error, coverage = _warp_step(video_THWC, clip, t)
        errors.append(error)
        coverages.append(coverage)
        speeds.append(_speed(clip, t))
        frozen.append(float(clip.is_repeated(t)))
    return Temporal(
        flicker=_mean(spikes),
        motion=_mean(speeds),
        frozen_share=_mean(frozen),
        warp_error=_mean(errors),
        warp_coverage=_mean(coverages),
    )


def flicker(video_THWC: Frames) -> float:
    """Flicker alone, 0 (none) to 1; print `motion` beside it. Raises VideoError under 3 frames."""
    return _measured(temporal(video_THWC).flicker, "flicker", 3, video_THWC)


def motion(video_THWC: Frames) -> float:
    """Motion alone, in pixels per frame; 0 for a frozen video. Raises VideoError under 2 frames."""
    check_video(video_THWC)
    _require("motion", 2, video_THWC)
    clip = Clip(video_THWC)
    return math.fsum(_speed(clip, t) for t in range(len(video_THWC) - 1)) / (len(video_THWC) - 1)


def warp_error(video_THWC: Frames) -> float:
    """Warp error alone, mean squared in [0, 1] RGB. Raises VideoError under 2 frames, or if flow followed nothing."""
    return _measured(temporal(video_THWC).warp_error, "warp error", 2, video_THWC)


class Clip:
    """Luma of a video and the flows between its frames, each computed once."""

    def __init__(self, video_THWC: Frames) -> None:
        _, height, width, _ = video_THWC.shape
        self.luma_THW: Plane = np.stack([frame_HWC.astype(np.float32) @ LUMA for frame_HWC in video_THWC])
        self.grey_THW = np.rint(self.luma_THW).astype(np.uint8)
        self.x_HW, self.y_HW = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._flows: dict[tuple[int, int], NDArray[np.float32]] = {}

    def flow(self, source: int, target: int) -> NDArray[np.float32]:
        """Where each pixel of frame `source` lies in frame `target`, less where it was: HW2, in px (x, y)."""
        key = (source, target)
        if key not in self._flows:
            self._flows[key] = self.search(source, target, None)
        return self._flows[key]

    def search(self, source: int, target: int, guess_HW2: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """The same, not kept: from a first guess, without which steps of over a tenth of the picture are lost."""
        grey_from, grey_to = self.grey_THW[source], self.grey_THW[target]
        guess = None if guess_HW2 is None else guess_HW2.copy()  # OpenCV writes its result over it
        return np.asarray(self._dis.calc(grey_from, grey_to, guess))  # ty: ignore[no-matching-overload] its stub has no None

    def forget_before(self, t: int) -> None:
        """Drop the flows from earlier frames: all those of 81 frames of 720p would be 2.4 GB."""
        self._flows = {key: flow for key, flow in self._flows.items() if key[0] >= t}

    def landing(self, flow_HW2: NDArray[np.float32]) -> tuple[Plane, Plane, NDArray[np.bool_]]:
        """Columns and rows where a flow leads, and which of them lie in the picture."""
        x_HW, y_HW = self.x_HW + flow_HW2[..., 0], self.y_HW + flow_HW2[..., 1]
        inside = (x_HW >= 0) & (x_HW <= self.x_HW[-1, -1]) & (y_HW >= 0) & (y_HW <= self.y_HW[-1, -1])
        return x_HW, y_HW, inside

    def followed(
        self, forward_HW2: NDArray[np.float32], back_HW2: NDArray[np.float32]
    ) -> tuple[Plane, Plane, NDArray[np.bool_]]:
        """Columns and rows where a flow leads, and the pixels that the flow back brings home again."""
        x_HW, y_HW, inside_HW = self.landing(forward_HW2)
        home_HW2 = cv2.remap(back_HW2, x_HW, y_HW, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        # Occlusion test of Sundaram et al. 2010: going there and back should end where it began.
        gap_HW = np.square(forward_HW2 + home_HW2).sum(-1)
        allowed_HW = 0.01 * (np.square(forward_HW2).sum(-1) + np.square(home_HW2).sum(-1)) + 0.5
        return x_HW, y_HW, inside_HW & (gap_HW < allowed_HW)

    def is_repeated(self, t: int) -> bool:
        """Whether frame t+1 is frame t again, but for what a codec does to it."""
        change_HW = cv2.blur(np.abs(self.luma_THW[t + 1] - self.luma_THW[t]), (FROZEN_BLOCK, FROZEN_BLOCK))
        return bool(change_HW.max() < FROZEN_LEVELS)


def _speed(clip: Clip, t: int) -> float:
    speed_HW = np.linalg.norm(clip.flow(t, t + 1), axis=-1)
    luma_HW = clip.luma_THW[t]
    dx_HW = cv2.Sobel(luma_HW, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy_HW = cv2.Sobel(luma_HW, cv2.CV_32F, 0, 1, scale=1 / 8)
    textured_HW = cv2.blur(dx_HW * dx_HW + dy_HW * dy_HW, (9, 9)) > TEXTURE_MIN
    return float(np.where(textured_HW, speed_HW, 0.0).mean())


def _spike(clip: Clip, t: int) -> float | None:
    """Mean over the frame of the worst spike at the spacings that fit into the video."""
    worst_HW: Plane | None = None
    seen_HW: NDArray[np.bool_] | None = None
    for spacing in FLICKER_SPACINGS:
        before, after = t - spacing, t + spacing
        if before < 0 or after >= len(clip.luma_THW):
            continue
        over_before_HW, known_before_HW = _excess(clip, t, before)
        over_after_HW, known_after_HW = _excess(clip, t, after)
        known_HW = known_before_HW & known_after_HW
        both_HW = known_HW & (over_before_HW * over_after_HW > 0)
        spike_HW = np.where(both_HW, np.minimum(np.abs(over_before_HW), np.abs(over_after_HW)), np.float32(0.0))
        worst_HW = spike_HW if worst_HW is None else np.maximum(worst_HW, spike_HW)
        seen_HW = known_HW if seen_HW is None else seen_HW | known_HW
    assert worst_HW is not None and seen_HW is not None, "the first spacing fits any frame that has two neighbours"
    return float(worst_HW[seen_HW].mean()) / 255.0 if seen_HW.any() else None


def _excess(clip: Clip, t: int, other: int) -> tuple[Plane, NDArray[np.bool_]]:
    """Luma of frame t less that of the same point in frame `other`, and where that point is in the picture."""
    x_HW, y_HW, inside_HW = clip.landing(clip.flow(t, other))
    # Cubic: linear interpolation blurs moving texture on both sides alike, which looks like a spike.
    there_HW = cv2.remap(clip.luma_THW[other], x_HW, y_HW, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return clip.luma_THW[t] - np.clip(there_HW, 0.0, 255.0), inside_HW


def _warp_step(video_THWC: Frames, clip: Clip, t: int) -> tuple[float | None, float]:
    """Warp error of frames t and t+1, and the share of pixels that it saw."""
    x_HW, y_HW, seen_HW = clip.followed(clip.flow(t, t + 1), clip.flow(t + 1, t))
    if not seen_HW.any():
        return None, 0.0
    following_HWC = video_THWC[t + 1].astype(np.float32)
    warped = cv2.remap(following_HWC, x_HW, y_HW, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    error_HWC = np.square((np.clip(warped, 0.0, 255.0) - video_THWC[t]) / 255.0)
    return float(error_HWC[seen_HW].mean()), float(seen_HW.mean())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _require(name: str, num_frames: int, video_THWC: Frames) -> None:
    have, height, width, _ = video_THWC.shape
    if have < num_frames or min(height, width) < FLOW_MIN_SIDE:
        raise VideoError(
            f"{name} needs at least {num_frames} frames of at least {FLOW_MIN_SIDE}x{FLOW_MIN_SIDE}, "
            f"this video has {have} of {width}x{height}"
        )


def _measured(value: float | None, name: str, num_frames: int, video_THWC: Frames) -> float:
    _require(name, num_frames, video_THWC)
    if value is None:
        raise VideoError(f"{name} has no value: optical flow could follow no pixel of this video, is it noise?")
    return value
