"""A sample: one dancer in one world, as video, prompt, first frame and every control picture, from one seed.

The same seed gives the same figure, place and dance in both worlds; *fairy* starts from the live photo and has turned
into the anime fairy after `TRANSFORM_S`.

Shapes: T frames, H height, W width, C = 3, RGB uint8.      Run: pytest tests/unit/test_synth.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from sakuga.errors import GeometryError, InputError
from sakuga.synth.choreography import Choreography, Pose, draw_choreography, pose_at
from sakuga.synth.figure import Figure, draw_figure_attributes
from sakuga.synth.paint import CEL, LIVE, OVERSAMPLING, WINGS, paint_figure
from sakuga.synth.prompts import paraphrases
from sakuga.synth.scene import paint_background, paint_fairy_things, paint_wings
from sakuga.synth.skeleton import Joints, draw_skeleton, place_joints

World = Literal["live", "fairy"]

HELD_OUT_SEED = 2**26
"""Seeds from here on never enter any training set."""
TRANSFORM_S = 0.6
"""From the photo to the fairy: frames 1..8 of 15 a second."""
FOLLOW_S = 0.11
"""How far hair and hem lag behind the body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Everything a real data set would have for one clip."""

    seed: int
    world: World
    video_THWC: np.ndarray
    prompt: str
    prompts: tuple[str, ...]
    """All paraphrases; `prompt` is the one that this seed chose."""
    input_image_HWC: np.ndarray
    control_video_THWC: np.ndarray
    """Skeleton on black."""
    vace_video_THWC: np.ndarray
    """The video with the dancer greyed out."""
    vace_mask_THW: np.ndarray
    """uint8, 255 where the model has to fill in."""
    layers_THW: np.ndarray
    """uint8 index into `paint.LAYERS`."""
    figure_mask_THW: np.ndarray
    """bool: body, clothes, hair and wings."""
    figure: Figure
    choreography: Choreography
    fps: int


@dataclass(frozen=True, slots=True)
class _Stage:
    """What stays the same over the frames of a sample."""

    figure: Figure
    poses: Pose
    late_poses: Pose
    times_s: np.ndarray
    width: int
    height: int
    spots: np.ndarray

    def joints(self, poses: Pose, index: int) -> Joints:
        canvas_w, canvas_h = self.width * OVERSAMPLING, self.height * OVERSAMPLING
        # In a narrow frame the arms set the size, in a wide one the height does.
        unit = self.figure.height_rel * min(canvas_h, 1.15 * canvas_w)
        return place_joints(poses.at(index), self.figure.centre_rel * canvas_w, 0.93 * canvas_h, unit)


def make_sample(
    seed: int,
    world: World = "live",
    *,
    width: int = 128,
    height: int = 128,
    num_frames: int = 33,
    fps: int = 15,
    photo_HWC: np.ndarray | None = None,
) -> Sample:
    """Draw the sample of `seed`.

    `photo_HWC` (uint8, height x width x 3) replaces the live photo as the start of a *fairy* video: the way in which a
    model learns that a real photograph, too, may turn into a fairy.

    Raises `InputError` for a negative seed or an unknown world, `GeometryError` for sizes below 32.
    """
    if seed < 0 or world not in ("live", "fairy"):
        raise InputError(f"seed {seed} in world '{world}' cannot be drawn: take a seed >= 0 and 'live' or 'fairy'")
    if min(width, height) < 32 or num_frames < 1:
        raise GeometryError(f"{width}x{height} with {num_frames} frames is too small: take at least 32x32 and 1")
    rng = np.random.default_rng(seed)
    figure, choreography = draw_figure_attributes(rng), draw_choreography(rng)
    place_seed, phrase = int(rng.integers(2**31)), int(rng.integers(12))
    times_s = np.arange(num_frames) / fps
    stage = _Stage(
        figure, pose_at(choreography, times_s), pose_at(choreography, times_s - FOLLOW_S), times_s, width, height,
        np.random.default_rng(place_seed + 1).uniform(0, 1, size=(8, 3)),
    )  # fmt: skip
    live_place = _empty_canvas(paint_background(figure, np.random.default_rng(place_seed), width, height, cel=False))
    if world == "live":
        frames = [_live_frame(stage, i, live_place) for i in range(num_frames)]
    else:
        cel_place = _empty_canvas(paint_background(figure, np.random.default_rng(place_seed), width, height, cel=True))
        frames = [_fairy_frame(stage, i, live_place, cel_place, photo_HWC, fps) for i in range(num_frames)]
    video, layers = [f[0] for f in frames], [f[1] for f in frames]
    return _assemble(seed, world, stage, choreography, video, layers, phrase, fps)


def _downsample(canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture and layer map of a canvas; all four channels are averaged, since a slice of three would be copied."""
    size = (canvas.shape[1] // OVERSAMPLING, canvas.shape[0] // OVERSAMPLING)
    picture = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)[..., :3]
    middle = OVERSAMPLING // 2
    return np.ascontiguousarray(picture), canvas[middle::OVERSAMPLING, middle::OVERSAMPLING, 3].copy()


def _empty_canvas(place: np.ndarray) -> np.ndarray:
    height, width = place.shape[:2]
    canvas = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING, 4), np.uint8)
    canvas[..., :3] = cv2.resize(place, None, fx=OVERSAMPLING, fy=OVERSAMPLING, interpolation=cv2.INTER_NEAREST)
    return canvas


def _live_frame(stage: _Stage, index: int, place_canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A photo-like frame: shapes, then soft light from the upper left, and a shadow on the floor."""
    joints, late = stage.joints(stage.poses, index), stage.joints(stage.late_poses, index)
    canvas = place_canvas.copy()
    paint_figure(canvas, joints, late, stage.figure, LIVE)
    picture, layers = _downsample(canvas)
    mask = (layers > 0).astype(np.float32)
    size = stage.height / 128
    soft = cv2.GaussianBlur(mask, (0, 0), 2.6 * size)
    # Difference of the blurred mask along the light: bright towards it, dark away from it, as on a rounded body.
    step = max(1, round(2 * size))
    light = np.roll(soft, (-step, -step), (0, 1)) - np.roll(soft, (step, step), (0, 1))
    factor = 1 - 0.34 * light * mask - _floor_shadow(stage, joints) * (1 - mask)
    return cv2.multiply(picture, cv2.merge([factor] * 3), dtype=cv2.CV_8U), layers


def _floor_shadow(stage: _Stage, joints: Joints) -> np.ndarray:
    """How much light the dancer takes from the floor, float32 (H, W); less and smaller while she is in the air."""
    shade = np.zeros((stage.height, stage.width), np.float32)
    lift = max(0.0, joints.floor_y - max(joints.foot_l[1], joints.foot_r[1])) / joints.unit
    unit_px = joints.unit / OVERSAMPLING
    centre = (round(joints.pelvis[0] / OVERSAMPLING), round(joints.floor_y / OVERSAMPLING + 0.01 * stage.height))
    axes = (round(0.17 * unit_px * (1 - lift)), max(1, round(0.032 * unit_px)))
    cv2.ellipse(shade, centre, axes, 0, 0, 360, 0.42 * (1 - 2 * min(lift, 0.3)), -1, cv2.LINE_AA)
    top = max(0, min(centre[1] - 4 * axes[1], stage.height - 8))
    shade[top:] = cv2.GaussianBlur(shade[top:], (0, 0), 1.6 * stage.height / 128)
    return shade


def _cel_frame(stage: _Stage, index: int, place_canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    joints, late = stage.joints(stage.poses, index), stage.joints(stage.late_poses, index)
    time_s = float(stage.times_s[index])
    canvas = place_canvas.copy()
    if joints.facing >= 0:
        paint_wings(canvas, joints, stage.figure, time_s)
    paint_figure(canvas, joints, late, stage.figure, CEL)
    if joints.facing < 0:
        paint_wings(canvas, joints, stage.figure, time_s)
    middle = OVERSAMPLING // 2
    layers = canvas[middle::OVERSAMPLING, middle::OVERSAMPLING, 3].copy()
    paint_fairy_things(canvas, joints, stage.spots, time_s)
    picture, with_things = _downsample(canvas)
    # The halo belongs to her, butterflies and sparkles to the place.
    top = round((joints.head[1] + 0.2 * joints.unit) / OVERSAMPLING)
    near = np.abs(np.arange(stage.width) - joints.head[0] / OVERSAMPLING) < 0.13 * joints.unit / OVERSAMPLING
    layers[:top][:, near] = np.where(with_things[:top][:, near] == WINGS, WINGS, layers[:top][:, near])
    return picture, layers


def _fairy_frame(
    stage: _Stage, index: int, live_place: np.ndarray, cel_place: np.ndarray, photo: np.ndarray | None, fps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The photo at first, the cel in the end, both mixed while she turns."""
    share = index / max(2, round(TRANSFORM_S * fps))
    if share >= 1:
        return _cel_frame(stage, index, cel_place)
    start, layers = _live_frame(stage, index, live_place) if photo is None else (photo, None)
    if index > 0 or layers is None:
        cel, cel_layers = _cel_frame(stage, index, cel_place)
        layers = cel_layers if layers is None else np.maximum(layers, cel_layers)
        start = start if index == 0 else _transformed(start, cel, stage, share)
    return start, layers


def _transformed(photo: np.ndarray, cel: np.ndarray, stage: _Stage, share: float) -> np.ndarray:
    """The cel spreads from her heart outwards, with a golden rim."""
    height, width = cel.shape[:2]
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot(xx - stage.figure.centre_rel * width, yy - 0.5 * height) / (0.5 * np.hypot(height, width))
    weight = np.clip((1.35 * share - distance) / 0.22 + 0.5, 0, 1)[..., None]
    weight = weight * weight * (3 - 2 * weight)
    mixed = photo * (1 - weight) + cel * weight
    rim = 4 * weight * (1 - weight) * (1 - share)
    return np.clip(mixed + rim * np.array([90, 74, 30], np.float32), 0, 255).astype(np.uint8)


def _assemble(
    seed: int, world: World, stage: _Stage, choreography: Choreography, video: list[np.ndarray],
    layers: list[np.ndarray], phrase: int, fps: int,
) -> Sample:  # fmt: skip
    video_THWC, layers_THW = np.stack(video), np.stack(layers)
    mask_THW = layers_THW > 0
    reach = max(3, round(stage.height / 16)) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    hidden_THW = np.stack([cv2.dilate(m, kernel) for m in mask_THW.astype(np.uint8)]) * np.uint8(255)
    skeletons = [
        draw_skeleton(stage.joints(stage.poses, i), stage.width, stage.height, OVERSAMPLING)
        for i in range(len(video))
    ]  # fmt: skip
    prompts = paraphrases(stage.figure, choreography, world)
    return Sample(
        seed=seed, world=world, video_THWC=video_THWC, prompt=prompts[phrase % len(prompts)], prompts=prompts,
        input_image_HWC=video_THWC[0], control_video_THWC=np.stack(skeletons),
        vace_video_THWC=np.where(hidden_THW[..., None] > 0, np.uint8(128), video_THWC), vace_mask_THW=hidden_THW,
        layers_THW=layers_THW, figure_mask_THW=mask_THW, figure=stage.figure, choreography=choreography, fps=fps,
    )  # fmt: skip
