"""Painting a dancer: one routine for both worlds, told apart by a `Style`.

The canvas is `OVERSAMPLING` times as large as the picture, RGB plus a fourth channel that holds the layer of every
pixel. It is drawn without OpenCV's line smoothing and averaged down: at 3 x 3 samples that is smoother and faster,
and the layer map comes out of the same strokes.

Canvas coordinates: x right, y down, pixels. Layers: see `LAYERS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sakuga.synth.figure import RGB, Figure
from sakuga.synth.skeleton import HEAD_RADIUS, Joints, Point

OVERSAMPLING = 3
LAYERS = ("background", "body", "clothes", "hair", "wings")
BODY, CLOTHES, HAIR, WINGS = 1, 2, 3, 4
_SHIFT = 4
_ONE = 1 << _SHIFT


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What separates a photo from a cel."""

    outline: float
    """Width of the dark contour in figure heights; 0 draws none."""
    shade: float
    """How dark the shadow tone is, 0..1."""
    eye_scale: float
    saturation: float


LIVE = Style(outline=0.0, shade=0.20, eye_scale=1.0, saturation=1.0)
CEL = Style(outline=0.011, shade=0.26, eye_scale=2.3, saturation=1.12)
_INK: RGB = (48, 30, 56)


def tone(colour: RGB, factor: float) -> RGB:
    """A darker (< 1) or lighter (> 1, towards white) tone."""
    if factor <= 1:
        red, green, blue = (round(c * factor) for c in colour)
    else:
        red, green, blue = (round(c + (255 - c) * (factor - 1)) for c in colour)
    return red, green, blue


def _saturated(colour: RGB, factor: float) -> RGB:
    grey = sum(colour) / 3
    red, green, blue = (int(np.clip(grey + (c - grey) * factor, 0, 255)) for c in colour)
    return red, green, blue


@dataclass(frozen=True, slots=True)
class Brush:
    """Draws filled shapes with an optional contour on a 4-channel canvas."""

    canvas: np.ndarray
    ink_px: float

    def _points(self, points: list[Point]) -> np.ndarray:
        return np.rint(np.asarray(points) * _ONE).astype(np.int32)

    def polygon(self, points: list[Point], colour: RGB, layer: int, ink: bool = True) -> None:
        shape = [self._points(points)]
        if ink and self.ink_px > 0:
            thickness = max(1, round(2 * self.ink_px))
            cv2.polylines(self.canvas, shape, True, (*_INK, layer), thickness, cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.canvas, shape, (*colour, layer), cv2.LINE_8, _SHIFT)

    def limb(self, points: list[Point], width: float, colour: RGB, layer: int, ink: bool = True) -> None:
        """A chain of capsules, `width` pixels thick."""
        shape = [self._points(points)]
        if ink and self.ink_px > 0:
            outer = max(1, round(width + 2 * self.ink_px))
            cv2.polylines(self.canvas, shape, False, (*_INK, layer), outer, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.canvas, shape, False, (*colour, layer), max(1, round(width)), cv2.LINE_8, _SHIFT)

    def ellipse(self, centre: Point, axes: Point, colour: RGB, layer: int, ink: bool = True, angle: float = 0) -> None:
        middle = (round(centre[0] * _ONE), round(centre[1] * _ONE))
        if ink and self.ink_px > 0:
            outer = (round((axes[0] + self.ink_px) * _ONE), round((axes[1] + self.ink_px) * _ONE))
            cv2.ellipse(self.canvas, middle, outer, angle, 0, 360, (*_INK, layer), -1, cv2.LINE_8, _SHIFT)
        inner = (max(1, round(axes[0] * _ONE)), max(1, round(axes[1] * _ONE)))
        cv2.ellipse(self.canvas, middle, inner, angle, 0, 360, (*colour, layer), -1, cv2.LINE_8, _SHIFT)


def paint_figure(canvas: np.ndarray, joints: Joints, late: Joints, figure: Figure, style: Style) -> None:
    """Draw the dancer on a uint8 (H, W, 4) canvas; `late` are her joints a moment earlier, for hair and skirt."""
    brush = Brush(canvas, style.outline * joints.unit)
    skin = _saturated(figure.skin_rgb, style.saturation)
    hair = _saturated(figure.hair_rgb, style.saturation)
    cloth = _saturated(figure.outfit_rgb, style.saturation)
    if joints.facing >= 0:
        _hair_behind(brush, joints, late, figure, hair, style)
    _legs(brush, joints, figure, skin, cloth, style)
    _arms(brush, joints, figure, skin, cloth, style, behind=True)
    _torso(brush, joints, late, figure, skin, cloth, style)
    _arms(brush, joints, figure, skin, cloth, style, behind=False)
    _head(brush, joints, figure, skin, hair, style)
    if joints.facing < 0:
        _hair_behind(brush, joints, late, figure, hair, style)


def _mix(a: Point, b: Point, share: float) -> Point:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


def _legs(brush: Brush, j: Joints, figure: Figure, skin: RGB, cloth: RGB, style: Style) -> None:
    u = j.unit
    covered = figure.outfit == "jumpsuit"
    leg, layer = (cloth, CLOTHES) if covered else (skin, BODY)
    shoe = (74, 50, 64)
    for side in ("l", "r"):
        hip, knee, foot = getattr(j, f"hip_{side}"), getattr(j, f"knee_{side}"), getattr(j, f"foot_{side}")
        brush.limb([hip, knee, foot], 0.066 * u, leg, layer)
        light = (0.012 * u, 0.0)
        brush.limb([(p[0] + light[0], p[1]) for p in (hip, knee, foot)], 0.022 * u, tone(leg, 1 - style.shade), layer,
                   ink=False)  # fmt: skip
        brush.ellipse((foot[0], foot[1] + 0.008 * u), (0.042 * u, 0.024 * u), shoe, CLOTHES)


def _arms(
    brush: Brush, j: Joints, figure: Figure, skin: RGB, cloth: RGB, style: Style, *, behind: bool
) -> None:  # fmt: skip
    u = j.unit
    # In profile one arm is behind the body.
    far = "l" if j.profile > 0 else "r"
    for side in ("l", "r"):
        if (side == far and abs(j.profile) > 0.5) != behind:
            continue
        shoulder, elbow, hand = getattr(j, f"shoulder_{side}"), getattr(j, f"elbow_{side}"), getattr(j, f"hand_{side}")
        brush.limb([shoulder, elbow, hand], 0.044 * u, skin, BODY)
        shadow = [(p[0] + 0.004 * u, p[1] + 0.010 * u) for p in (shoulder, elbow, hand)]
        brush.limb(shadow, 0.016 * u, tone(skin, 1 - style.shade), BODY, ink=False)
        brush.ellipse(hand, (0.026 * u, 0.026 * u), skin, BODY)
        sleeve = 1.0 if figure.outfit == "jumpsuit" else 0.55 if figure.outfit == "tunic" else 0.25
        brush.limb([shoulder, _mix(shoulder, elbow, sleeve)], 0.060 * u, cloth, CLOTHES)


def _torso(
    brush: Brush, j: Joints, late: Joints, figure: Figure, skin: RGB, cloth: RGB, style: Style
) -> None:  # fmt: skip
    u = j.unit
    brush.limb([j.neck, j.head], 0.05 * u, skin, BODY)
    sl, sr, pelvis = j.shoulder_l, j.shoulder_r, j.pelvis
    width = 0.5 + 0.5 * abs(j.facing)
    waist = _mix(j.neck, pelvis, 0.62)
    half_waist, half_hip = 0.058 * u * width, 0.082 * u * width
    torso = [
        (sl[0] - 0.012 * u, sl[1] - 0.008 * u), (j.neck[0], j.neck[1] + 0.018 * u),
        (sr[0] + 0.012 * u, sr[1] - 0.008 * u),
        (waist[0] + half_waist, waist[1]), (pelvis[0] + half_hip, pelvis[1] + 0.02 * u),
        (pelvis[0] - half_hip, pelvis[1] + 0.02 * u), (waist[0] - half_waist, waist[1]),
    ]  # fmt: skip
    length = {"dress": 0.24, "skirt": 0.13, "tunic": 0.07, "jumpsuit": 0.0}[figure.outfit]
    if length:
        # The hem hangs from where the hips were, and flares with the turn.
        flare = (0.13 if figure.outfit != "tunic" else 0.105) * (1 + 0.35 * abs(j.profile - late.profile)) * u
        lag = (late.pelvis[0] - pelvis[0], late.pelvis[1] - pelvis[1])
        reach = 0.5 * (max(abs(j.knee_l[0] - pelvis[0]), abs(j.knee_r[0] - pelvis[0])))
        flare = max(flare, min(reach, 0.19 * u))
        hem = (pelvis[0] + 0.9 * lag[0], pelvis[1] + length * u + 0.4 * lag[1])
        skirt = [
            (waist[0] - half_waist, waist[1]), (waist[0] + half_waist, waist[1]),
            (hem[0] + flare, hem[1] - 0.01 * u), (hem[0] + 0.4 * flare, hem[1] + 0.02 * u),
            (hem[0] - 0.4 * flare, hem[1] + 0.02 * u), (hem[0] - flare, hem[1] - 0.01 * u),
        ]  # fmt: skip
        brush.polygon(skirt, cloth, CLOTHES)
        fold = [skirt[1], skirt[2], skirt[3], _mix(skirt[1], skirt[0], 0.25)]
        brush.polygon(fold, tone(cloth, 1 - style.shade), CLOTHES, ink=False)
    brush.polygon(torso, cloth, CLOTHES)
    inner = [_mix(pelvis, torso[4], 0.3), _mix(waist, torso[3], 0.4)]
    shadow = [_mix(j.neck, sr, 0.6), torso[2], torso[3], torso[4], *inner]
    brush.polygon(shadow, tone(cloth, 1 - style.shade), CLOTHES, ink=False)
    if figure.accessory == "a scarf":
        brush.limb([_mix(sl, j.neck, 0.5), (j.neck[0], j.neck[1] + 0.02 * u), _mix(sr, j.neck, 0.5)], 0.04 * u,
                   tone(figure.hair_rgb, 0.75), CLOTHES)  # fmt: skip
    elif figure.accessory == "a necklace" and j.facing > 0:
        brush.ellipse((j.neck[0], j.neck[1] + 0.03 * u), (0.014 * u, 0.014 * u), (255, 220, 90), CLOTHES, ink=False)


def _hair_behind(brush: Brush, j: Joints, late: Joints, figure: Figure, hair: RGB, style: Style) -> None:
    """Everything of the hair that hangs: behind the body from the front, over it from the back."""
    u, r = j.unit, HEAD_RADIUS * j.unit
    hx, hy = j.head
    dx, dy = late.head[0] - hx, late.head[1] - hy
    dark = tone(hair, 1 - 0.6 * style.shade)
    match figure.hair_shape:
        case "long hair":
            tip_y = hy + 0.36 * u + dy
            brush.polygon(
                [(hx - 1.02 * r, hy - 0.2 * r), (hx + 1.02 * r, hy - 0.2 * r), (hx + 1.15 * r + dx, tip_y - 0.05 * u),
                 (hx + 0.3 * r + 1.3 * dx, tip_y), (hx - 0.3 * r + 1.3 * dx, tip_y),
                 (hx - 1.15 * r + dx, tip_y - 0.05 * u)],
                dark, HAIR)  # fmt: skip
        case "a bob":
            brush.polygon(
                [(hx - 1.08 * r, hy - 0.2 * r), (hx + 1.08 * r, hy - 0.2 * r),
                 (hx + 1.25 * r + 0.6 * dx, hy + 1.05 * r), (hx - 1.25 * r + 0.6 * dx, hy + 1.05 * r)],
                dark, HAIR)  # fmt: skip
        case "twin tails":
            for sign in (-1.0, 1.0):
                root = (hx + sign * 0.95 * r, hy - 0.35 * r)
                middle = (hx + sign * 1.9 * r + 0.8 * dx, hy + 0.9 * r + 0.5 * dy)
                tip = (hx + sign * 1.7 * r + 1.6 * dx, hy + 2.6 * r + dy)
                brush.limb([root, middle, tip], 0.62 * r, dark, HAIR)
        case "a ponytail":
            sign = -1.0 if j.profile >= 0 else 1.0
            root = (hx + sign * 0.5 * r, hy - 0.75 * r)
            middle = (hx + sign * 1.55 * r + 0.8 * dx, hy + 0.1 * r + 0.5 * dy)
            tip = (hx + sign * 1.35 * r + 1.7 * dx, hy + 2.2 * r + dy)
            brush.limb([root, middle, tip], 0.58 * r, dark, HAIR)
        case "a bun":
            brush.ellipse((hx - 0.25 * r * j.profile, hy - 1.1 * r), (0.52 * r, 0.48 * r), dark, HAIR)
        case _:
            brush.ellipse((hx, hy + 0.1 * r), (1.08 * r, 0.95 * r), dark, HAIR)


def _head(brush: Brush, j: Joints, figure: Figure, skin: RGB, hair: RGB, style: Style) -> None:
    r = HEAD_RADIUS * j.unit
    hx, hy = j.head
    if j.facing < 0:
        brush.ellipse((hx, hy), (1.02 * r, 1.05 * r), hair, HAIR)
        brush.ellipse((hx + 0.3 * r, hy - 0.35 * r), (0.35 * r, 0.3 * r), tone(hair, 1.25), HAIR, ink=False)
        return
    shift = 0.45 * r * j.profile
    brush.ellipse((hx, hy + 0.05 * r), (0.90 * r, 0.98 * r), skin, BODY)
    eye_y, spread = hy + 0.18 * r, 0.40 * r * (0.55 + 0.45 * j.facing)
    for sign in (-1.0, 1.0):
        x = hx + shift + sign * spread
        wide, tall = 0.085 * r * style.eye_scale, 0.12 * r * style.eye_scale
        if style.outline:
            brush.ellipse((x, eye_y), (wide * 1.15, tall * 1.2), (255, 255, 255), BODY, ink=False)
            brush.ellipse((x, eye_y + 0.02 * r), (wide * 0.92, tall), (54, 44, 120), BODY, ink=False)
            glint, cheek = (x - 0.3 * wide, eye_y - 0.4 * tall), (x + sign * 0.12 * r, eye_y + 0.38 * r)
            brush.ellipse(glint, (0.4 * wide, 0.4 * tall), (255, 255, 255), BODY, ink=False)
            brush.ellipse(cheek, (0.15 * r, 0.08 * r), (255, 150, 160), BODY, ink=False)
        else:
            brush.ellipse((x, eye_y), (wide, tall), (44, 32, 36), BODY, ink=False)
    brush.ellipse((hx + shift, hy + 0.62 * r), (0.17 * r, 0.05 * r), tone((196, 70, 84), 1.0), BODY, ink=False)
    if figure.accessory == "glasses":
        for sign in (-1.0, 1.0):
            centre = (round((hx + shift + sign * spread) * _ONE), round(eye_y * _ONE))
            cv2.ellipse(brush.canvas, centre, (round(0.25 * r * _ONE), round(0.23 * r * _ONE)), 0, 0, 360,
                        (30, 30, 40, BODY), max(1, round(0.05 * r)), cv2.LINE_8, _SHIFT)  # fmt: skip
    # The cap of hair: a dome over the upper half, with a fringe that turns with the face.
    angles = np.linspace(-0.10 * np.pi, 1.10 * np.pi, 22)
    dome = [(hx + 1.04 * r * np.cos(a), hy - 1.06 * r * np.sin(a)) for a in angles]
    fringe = [(hx - 0.62 * r + 0.6 * shift, hy - 0.02 * r), (hx - 0.30 * r + shift, hy - 0.36 * r),
              (hx + 0.05 * r + shift, hy - 0.12 * r), (hx + 0.42 * r + shift, hy - 0.38 * r),
              (hx + 0.70 * r + 0.6 * shift, hy - 0.02 * r)]  # fmt: skip
    brush.polygon(dome + fringe, hair, HAIR)
    brush.ellipse((hx - 0.32 * r, hy - 0.66 * r), (0.34 * r, 0.13 * r), tone(hair, 1.35), HAIR, ink=False, angle=-24)
    if figure.accessory == "a hair bow":
        bow = (255, 90, 130) if figure.hair_colour not in ("pink", "red") else (90, 170, 255)
        x, y = hx + 0.62 * r, hy - 0.80 * r
        brush.polygon([(x, y), (x - 0.42 * r, y - 0.32 * r), (x - 0.42 * r, y + 0.26 * r)], bow, CLOTHES)
        brush.polygon([(x, y), (x + 0.42 * r, y - 0.32 * r), (x + 0.42 * r, y + 0.26 * r)], bow, CLOTHES)
