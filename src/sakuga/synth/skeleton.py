"""From a pose to joints on the canvas, and the skeleton picture that pose-controlled models take.

Forward kinematics in two dimensions with yaw as a foreshortening of everything lateral. Lengths are in figure
heights, an adult in anime proportions (the head is a fifth). Canvas coordinates: x right, y down, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sakuga.synth.choreography import Pose

HEAD_RADIUS = 0.122
SHOULDER_HALF = 0.088
HIP_HALF = 0.044
UPPER_ARM, FOREARM = 0.145, 0.135
THIGH, SHIN = 0.207, 0.207
HIP_Y, SHOULDER_Y, HEAD_Y = 0.440, 0.675, 0.830

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joints:
    """Joint places in canvas pixels, and what foreshortening leaves of lateral sizes."""

    head: Point
    neck: Point
    shoulder_l: Point
    shoulder_r: Point
    elbow_l: Point
    elbow_r: Point
    hand_l: Point
    hand_r: Point
    pelvis: Point
    hip_l: Point
    hip_r: Point
    knee_l: Point
    knee_r: Point
    foot_l: Point
    foot_r: Point
    unit: float
    """Pixels of one figure height."""
    facing: float
    """cos(yaw): 1 faces the viewer, -1 shows her back."""
    profile: float
    """sin(yaw): where the face has turned to."""
    floor_y: float


def place_joints(pose: Pose, centre_x: float, floor_y: float, unit: float) -> Joints:
    """Joints of one pose (scalars) for a figure standing at (`centre_x`, `floor_y`), `unit` pixels tall."""
    facing, profile = float(np.cos(pose.yaw)), float(np.sin(pose.yaw))
    # A body turned to the side still has depth: half the width at least.
    width = 0.5 + 0.5 * abs(facing)
    mirror = 1.0 if facing >= 0 else -1.0

    def canvas(x: float, y: float) -> Point:
        return centre_x + (x + float(pose.root_x)) * unit, floor_y - (y + float(pose.root_y)) * unit

    lean, hip_x = float(pose.lean), float(pose.hip_x)
    crouch = 0.5 * (1 - np.cos(min(float(pose.knee_l), float(pose.knee_r)))) * (THIGH + SHIN)
    hip_y = HIP_Y - crouch

    def upper(x: float, y: float) -> tuple[float, float]:
        dy = y - HIP_Y
        return hip_x + x * np.cos(lean) + dy * np.sin(lean), hip_y + dy * np.cos(lean) - x * np.sin(lean)

    def arm(sign: float, raise_angle: float, bend: float) -> tuple[Point, Point, Point]:
        sx, sy = upper(sign * SHOULDER_HALF * width, SHOULDER_Y)
        reach = 0.35 + 0.65 * abs(facing)
        ex, ey = sx + sign * reach * UPPER_ARM * np.sin(raise_angle), sy - UPPER_ARM * np.cos(raise_angle)
        fore = raise_angle + bend
        hx, hy = ex + sign * reach * FOREARM * np.sin(fore), ey - FOREARM * np.cos(fore)
        return canvas(sx, sy), canvas(ex, ey), canvas(hx, hy)

    def leg(sign: float, spread: float, bend: float) -> tuple[Point, Point, Point]:
        jx, jy = hip_x + sign * HIP_HALF * width, hip_y
        reach = 0.5 + 0.5 * abs(facing)
        kx, ky = jx + sign * reach * THIGH * np.sin(spread + 0.5 * bend), jy - THIGH * np.cos(spread + 0.5 * bend)
        fx, fy = kx + sign * reach * SHIN * np.sin(spread - 0.5 * bend), ky - SHIN * np.cos(spread - 0.5 * bend)
        return canvas(jx, jy), canvas(kx, ky), canvas(fx, fy)

    left, right = ("l", "r") if mirror > 0 else ("r", "l")
    arms = {side: (getattr(pose, f"arm_{side}"), getattr(pose, f"elbow_{side}")) for side in "lr"}
    legs = {side: (getattr(pose, f"leg_{side}"), getattr(pose, f"knee_{side}")) for side in "lr"}
    shoulder_l, elbow_l, hand_l = arm(-1.0, *map(float, arms[left]))
    shoulder_r, elbow_r, hand_r = arm(1.0, *map(float, arms[right]))
    hip_l, knee_l, foot_l = leg(-1.0, *map(float, legs[left]))
    hip_r, knee_r, foot_r = leg(1.0, *map(float, legs[right]))
    tilt = float(pose.head)
    head_x, head_y = upper(0.10 * np.sin(tilt), HEAD_Y)
    return Joints(
        head=canvas(head_x, head_y), neck=canvas(*upper(0.0, SHOULDER_Y + 0.02)),
        shoulder_l=shoulder_l, shoulder_r=shoulder_r, elbow_l=elbow_l, elbow_r=elbow_r, hand_l=hand_l, hand_r=hand_r,
        pelvis=canvas(hip_x, hip_y), hip_l=hip_l, hip_r=hip_r, knee_l=knee_l, knee_r=knee_r, foot_l=foot_l,
        foot_r=foot_r, unit=unit, facing=facing, profile=profile, floor_y=floor_y,
    )  # fmt: skip


_BONES = (
    ("head", "neck", (255, 0, 0)),
    ("neck", "shoulder_l", (255, 85, 0)), ("shoulder_l", "elbow_l", (255, 170, 0)),
    ("elbow_l", "hand_l", (255, 255, 0)),
    ("neck", "shoulder_r", (170, 255, 0)), ("shoulder_r", "elbow_r", (85, 255, 0)), ("elbow_r", "hand_r", (0, 255, 0)),
    ("neck", "pelvis", (0, 255, 170)),
    ("pelvis", "hip_l", (0, 255, 255)), ("hip_l", "knee_l", (0, 170, 255)), ("knee_l", "foot_l", (0, 85, 255)),
    ("pelvis", "hip_r", (0, 0, 255)), ("hip_r", "knee_r", (85, 0, 255)), ("knee_r", "foot_r", (170, 0, 255)),
)  # fmt: skip
"""A colour of its own for every limb on black, as OpenPose draws them."""


def draw_skeleton(joints: Joints, width: int, height: int, scale: float) -> np.ndarray:
    """Skeleton picture, uint8 HWC, from joints placed on a canvas `scale` times as large."""
    image = np.zeros((height, width, 3), np.uint8)
    shift = 4
    factor = (1 << shift) / scale
    for start, end, colour in _BONES:
        a, b = getattr(joints, start), getattr(joints, end)
        start_px = (round(a[0] * factor), round(a[1] * factor))
        end_px = (round(b[0] * factor), round(b[1] * factor))
        cv2.line(image, start_px, end_px, colour, max(1, round(height / 64)), cv2.LINE_AA, shift)
    return image
