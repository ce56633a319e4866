"""From a file to what the model is shown: which frames, at which size, cut the same way for all that goes with it.

Frames are chosen by time, so a clip of 24 fps that is learnt at 15 keeps its speed, and one of variable rate too. A
clip longer than asked gives its beginning, a shorter one goes into the largest bucket of frames that it fills. The size
is that bucket of the asked area whose aspect is nearest; the picture is scaled, and what stands over is cut off evenly.

Shapes: T frames, H height, W width, C colour (RGB, uint8).     Run: pytest tests/unit/test_training_clips.py
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sakuga.errors import DataError, shown
from sakuga.media import fit_image, frame_times, load_image, read_video, video_info
from sakuga.training.layouts import SourceSample

MIN_VIDEO_FRAMES = 5
"""A latent frame beyond the first one."""
MIN_AREA_SHARE = 0.8
"""A bucket of size holds so much of the asked area: others would learn another sharpness."""
MAX_ASPECT = 2.5
"""Of a bucket's sides; longer pictures are cut to it."""
ASKED_SIZE_GAIN = 0.05
"""Another bucket is taken when it cuts off less by so much: 1920x1080 goes into 832x480, not into 832x464."""
STEADY_SHARE = 0.25
"""Times of a steady rate differ by less of a frame: containers round them to milliseconds."""
READ_FRAMES = 2
"""Frames that are read beyond the last one, which may be the nearest in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec:
    """What all clips of a data set should be."""

    width: int
    height: int
    """Pixels: the area that every clip has about, and the aspect of those that fit it."""
    num_frames: int
    """4n+1, at most."""
    fps: int
    size_multiple: int = 16

    @property
    def read_s(self) -> float:
        """Seconds of a video that decide its clip."""
        return (self.num_frames + READ_FRAMES) / self.fps


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPlan:
    """How the target of a sample is cut."""

    width: int
    height: int
    indices: tuple[int, ...]
    """Frames of the source, one for each of the clip."""
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A sample's pixels."""

    frames_THWC: np.ndarray
    images: Mapping[str, Image.Image] = field(default_factory=dict)
    videos: Mapping[str, np.ndarray] = field(default_factory=dict)
    layers_THW: np.ndarray | None = None


def frame_choice(times_s: np.ndarray, fps: float) -> np.ndarray:
    """The source frame nearest to each moment k / fps, as long as the source lasts.

    >>> frame_choice(np.arange(8) / 24, 12)
    array([0, 2, 4, 6])
    """
    steps = np.diff(times_s)
    end_s = times_s[-1] + (np.median(steps) if len(steps) else 0)
    moments = np.arange(max(1, math.floor(end_s * fps + 0.01))) / fps
    after = np.searchsorted(times_s, moments).clip(0, len(times_s) - 1)
    before = (after - 1).clip(0)
    # The tie goes to the earlier frame, whatever the last bit of a quotient is.
    return np.where(times_s[after] - moments < moments - times_s[before] - 1e-6, after, before)


def frame_buckets(num_frames: int) -> tuple[int, ...]:
    """Lengths of clips, each with about half as many latent frames as the one before.

    >>> frame_buckets(81)
    (81, 41, 21, 9, 5)
    """
    latents = (num_frames - 1) // 4
    lengths = [4 * (latents >> shift) + 1 for shift in range(latents.bit_length())]
    return tuple(lengths)


def size_bucket(width: int, height: int, spec: ClipSpec) -> tuple[int, int]:
    """Width and height for a source of this size.

    >>> size_bucket(1080, 1920, ClipSpec(width=832, height=480, num_frames=81, fps=16))
    (480, 832)
    """
    multiple, area = spec.size_multiple, spec.width * spec.height
    buckets = {(spec.width, spec.height), (spec.height, spec.width)}
    for short in range(multiple, math.isqrt(area) + 1, multiple):
        long = area // short // multiple * multiple
        if short * long >= MIN_AREA_SHARE * area and long <= MAX_ASPECT * short:
            buckets |= {(long, short), (short, long)}

    def cost(size: tuple[int, int]) -> float:
        asked = size in ((spec.width, spec.height), (spec.height, spec.width))
        return abs(math.log(size[0] / size[1] * height / width)) - (ASKED_SIZE_GAIN if asked else 0)

    return min(sorted(buckets), key=cost)


def plan_clip(sample: SourceSample, spec: ClipSpec) -> ClipPlan:
    """Read how long and large the target is, and choose. Raises DataError, VideoError or ImageError."""
    if sample.is_picture:
        notes: list[str] = []
        picture = load_image(sample.target, tell=notes.append)
        width, height = size_bucket(*picture.size, spec)
        return ClipPlan(
            width=width, height=height, indices=(0,), notes=(*notes, *_size_notes(*picture.size, width, height))
        )
    times_s = frame_times(sample.target, max_s=spec.read_s)
    if len(times_s) == 1:
        raise DataError("the video has one frame; give it as a picture (.png), or a longer video")
    chosen = frame_choice(times_s, spec.fps)
    buckets = [length for length in frame_buckets(spec.num_frames) if length <= len(chosen)]
    if not buckets:
        raise DataError(
            f"the video has {len(chosen)} frames at {spec.fps} fps, and a clip needs at least {MIN_VIDEO_FRAMES}; "
            "give a longer one or a lower --num-frames"
            if spec.num_frames >= MIN_VIDEO_FRAMES
            else f"clips of {spec.num_frames} frame are asked for, which a video is not; give pictures"
        )
    source_height, source_width = read_video(sample.target, max_s=times_s[1] / 2).shape[1:3]
    width, height = size_bucket(source_width, source_height, spec)
    return ClipPlan(
        width=width,
        height=height,
        indices=tuple(int(index) for index in chosen[: buckets[0]]),
        notes=(
            *_rate_notes(times_s, spec.fps),
            *_size_notes(source_width, source_height, width, height),
            *([f"{len(chosen)} frames fill a clip of {buckets[0]}"] if buckets[0] < spec.num_frames else []),
        ),
    )


def cut(sample: SourceSample, plan: ClipPlan, spec: ClipSpec, roles: Collection[str] = ()) -> Clip:
    """The pixels of a sample by its plan, with the images and videos of these roles.

    Raises DataError, VideoError or ImageError.
    """
    size = plan.width, plan.height
    if sample.is_picture:
        frames_THWC = np.array(fit_image(load_image(sample.target), *size))[None]
    else:
        frames_THWC = _fitted(_at(sample.target, plan.indices, spec), *size)
    return Clip(
        frames_THWC=frames_THWC,
        images={role: fit_image(load_image(path), *size) for role, path in sample.images.items() if role in roles},
        videos={role: _fitted(_beside(role, sample, plan, spec), *size) for role in sample.videos if role in roles},
        layers_THW=None if sample.layers is None else _layers(sample.layers, plan),
    )


def _at(path: Path, indices: tuple[int, ...], spec: ClipSpec) -> np.ndarray:
    return read_video(path, max_s=spec.read_s)[list(indices)]


def _beside(role: str, sample: SourceSample, plan: ClipPlan, spec: ClipSpec) -> np.ndarray:
    """Frames of a video that goes with the target: frame for frame if it has as many, whatever its clock; or by time.

    Programs that draw skeletons or depth often write their frames at a rate of their own.
    """
    path = sample.videos[role]
    own, target = video_info(path), video_info(sample.target)
    if abs(own.fps * own.duration_s - target.fps * target.duration_s) <= 1:
        frames_THWC = read_video(path, max_s=(plan.indices[-1] + READ_FRAMES) / own.fps)
        if len(frames_THWC) > plan.indices[-1]:
            return frames_THWC[list(plan.indices)]
    chosen = frame_choice(frame_times(path, max_s=spec.read_s), spec.fps)
    if len(chosen) < plan.num_frames:
        raise DataError(
            f"{role} has {len(chosen)} frames at {spec.fps} fps and the clip {plan.num_frames}; give one as long as "
            "the target"
        )
    return _at(path, tuple(chosen[: plan.num_frames]), spec)


def _fitted(frames_THWC: np.ndarray, width: int, height: int) -> np.ndarray:
    if frames_THWC.shape[1:3] == (height, width):
        return frames_THWC
    return np.stack([np.asarray(fit_image(Image.fromarray(frame), width, height)) for frame in frames_THWC])


def _layers(path: Path, plan: ClipPlan) -> np.ndarray:
    """The map of layers, cut as the target, with every pixel of one layer or another and none between."""
    try:
        with np.load(path) as file:
            layers_THW = file["layers_THW"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{shown(path)} holds no layers_THW that can be read ({error}); write it again") from error
    if layers_THW.ndim != 3 or layers_THW.dtype != np.uint8 or len(layers_THW) <= plan.indices[-1]:
        raise DataError(
            f"{shown(path)} has layers of {layers_THW.dtype} {layers_THW.shape}; they must be uint8, one index a "
            "pixel, for each frame of the video"
        )
    maps = [Image.fromarray(layers_THW[index]) for index in plan.indices]
    size = plan.width, plan.height
    return np.stack([np.asarray(ImageOps.fit(one, size, method=Image.Resampling.NEAREST)) for one in maps])


def _rate_notes(times_s: np.ndarray, fps: int) -> list[str]:
    steps = np.diff(times_s)
    step = float(np.median(steps))
    if (np.abs(steps - step) > STEADY_SHARE * step).any():
        return [f"variable frame rate ({1 / steps.max():.3g} to {1 / steps.min():.3g} fps), resampled to {fps} by time"]
    rate = 1 / float(np.mean(steps))
    if abs(rate - fps) < 0.01 * fps:
        return []
    repeated = ", which repeats frames" if rate < fps else ""
    return [f"resampled from {rate:.4g} to {fps} fps{repeated}"]


def _size_notes(source_width: int, source_height: int, width: int, height: int) -> list[str]:
    if (source_width, source_height) == (width, height):
        return []
    scale = max(width / source_width, height / source_height)
    notes = [f"{source_width}x{source_height} scaled and cut to {width}x{height}"]
    return [*notes, f"enlarged {scale:.1f} times, so it is not sharp"] if scale > 1.1 else notes
