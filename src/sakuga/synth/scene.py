"""Where she dances: five places, each as a photo (soft, textured) and as a cel (flat, pastel); and fairy things.

Backgrounds are drawn once a sample at canvas size and averaged down. uint8 HWC, RGB.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from sakuga.synth.figure import RGB, Figure
from sakuga.synth.paint import _INK, OVERSAMPLING, WINGS, Brush, tone
from sakuga.synth.skeleton import HEAD_RADIUS, Joints, Point

HORIZON = 0.66

_SKY: dict[str, tuple[RGB, RGB, RGB, RGB]] = {
    # upper sky, lower sky, near ground, far ground
    "a sunny meadow": ((112, 172, 232), (206, 228, 244), (88, 148, 66), (140, 184, 92)),
    "a sandy beach": ((96, 178, 226), (190, 226, 236), (222, 196, 146), (240, 222, 176)),
    "a city street at night": ((24, 26, 54), (64, 52, 92), (50, 50, 62), (78, 76, 92)),
    "a stage at sunset": ((92, 48, 104), (248, 160, 92), (98, 62, 50), (150, 98, 70)),
    "a cosy room": ((222, 204, 178), (236, 222, 200), (150, 106, 72), (178, 132, 92)),
}


def _gradient(height: int, width: int, top: RGB, bottom: RGB) -> np.ndarray:
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    column = np.array(top, np.float32) * (1 - ramp) + np.array(bottom, np.float32) * ramp
    return np.broadcast_to(column, (height, width, 3)).copy()


def paint_background(figure: Figure, rng: np.random.Generator, width: int, height: int, *, cel: bool) -> np.ndarray:
    """One background, uint8 (height, width, 3); the same `rng` state gives the same place in both worlds."""
    w, h = width * OVERSAMPLING, height * OVERSAMPLING
    sky_top, sky_low, ground_near, ground_far = _SKY[figure.background]
    if cel:
        sky_top, sky_low = _pastel(sky_top, (184, 132, 240)), _pastel(sky_low, (255, 196, 226))
        ground_near, ground_far = _pastel(ground_near, (120, 190, 170)), _pastel(ground_far, (180, 226, 196))
    horizon = round(h * HORIZON)
    canvas = np.concatenate(
        [_gradient(horizon, w, sky_top, sky_low), _gradient(h - horizon, w, ground_far, ground_near)]
    ).astype(np.uint8)
    places = rng.uniform(0, 1, size=(8, 3))
    _furnish(canvas, figure.background, places, horizon, cel=cel)
    if cel:
        for x, y, size in places:
            _star(canvas, (x * w, y * horizon * 0.8), (0.006 + 0.012 * size) * h, (255, 252, 230))
        return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    picture = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    picture = cv2.GaussianBlur(picture, (0, 0), 1.3 * height / 128)
    # Photo texture: smooth enough for a codec and a VAE to keep, strong enough to be seen.
    texture = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 1.2)
    picture += 9 * texture[..., None] * np.linspace(0.4, 1.2, height, dtype=np.float32)[:, None, None]
    yy, xx = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    return np.clip(picture * (1.04 - 0.14 * (xx**2 + yy**2))[..., None], 0, 255).astype(np.uint8)


def _from_hue(hue: float, saturation: float) -> RGB:
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, 1.0))
    return red, green, blue


def _pastel(colour: RGB, towards: RGB) -> RGB:
    red, green, blue = (round(0.45 * c + 0.55 * t) for c, t in zip(colour, towards, strict=True))
    return red, green, blue


def _furnish(canvas: np.ndarray, place: str, spots: np.ndarray, horizon: int, *, cel: bool) -> None:
    """Hills, sea, houses, lights or a window; `spots` (8, 3) in 0..1 place them."""
    h, w = canvas.shape[:2]

    def colour(rgb: RGB) -> RGB:
        return _pastel(rgb, (214, 170, 240)) if cel else rgb

    if place == "a sunny meadow":
        for x, y, s in spots[:3]:
            centre, axes = (round(x * w), horizon), (round((0.25 + 0.2 * s) * w), round((0.08 + 0.1 * y) * h))
            cv2.ellipse(canvas, centre, axes, 0, 180, 360, colour((96, 150, 92)), -1)
        for x, y, s in spots[3:]:
            cv2.circle(canvas, (round(x * w), round(horizon + y * (h - horizon))), round((0.006 + 0.008 * s) * h),
                       colour((250, 226, 120)), -1)  # fmt: skip
    elif place == "a sandy beach":
        cv2.rectangle(canvas, (0, round(horizon - 0.10 * h)), (w, horizon), colour((46, 140, 186)), -1)
        sun = (round((0.1 + 0.8 * spots[0, 0]) * w), round(0.16 * h))
        cv2.circle(canvas, sun, round(0.06 * h), colour((255, 246, 206)), -1)
    elif place == "a city street at night":
        for x, y, s in spots[:6]:
            left, top = round((x * 1.1 - 0.1) * w), round(horizon - (0.18 + 0.34 * y) * h)
            right = round(left + (0.12 + 0.1 * s) * w)
            cv2.rectangle(canvas, (left, top), (right, horizon), colour((40, 40, 66)), -1)
            for row in range(top + round(0.03 * h), horizon - round(0.03 * h), round(0.055 * h)):
                cv2.rectangle(canvas, (left + round(0.02 * w), row), (right - round(0.02 * w), row + round(0.015 * h)),
                              colour((236, 196, 110)), -1)  # fmt: skip
    elif place == "a stage at sunset":
        for x, _, s in spots[:3]:
            spread = (0.08 + 0.06 * s) * w
            light = np.array([[x * w, 0], [x * w - spread, horizon], [x * w + spread, horizon]], np.int32)
            cv2.fillConvexPoly(canvas, light, colour((255, 208, 150)))
        cv2.rectangle(canvas, (0, 0), (round(0.07 * w), h), colour((140, 30, 50)), -1)
        cv2.rectangle(canvas, (round(0.93 * w), 0), (w, h), colour((140, 30, 50)), -1)
    else:
        left, top = round((0.06 + 0.1 * spots[0, 0]) * w), round(0.12 * h)
        right, bottom = left + round(0.22 * w), top + round(0.30 * h)
        cv2.rectangle(canvas, (left, top), (right, bottom), colour((150, 206, 240)), -1)
        cv2.rectangle(canvas, (left, top), (right, bottom), colour((120, 84, 60)), round(0.015 * h))
        left = round((0.74 + 0.06 * spots[1, 0]) * w)
        cv2.rectangle(canvas, (left, round(0.30 * h)), (left + round(0.18 * w), horizon), colour((122, 78, 56)), -1)


def _star(canvas: np.ndarray, centre: Point, radius: float, colour: RGB) -> None:
    """A four-pointed sparkle on a 3- or 4-channel canvas."""
    angles = np.arange(8) * np.pi / 4
    radii = np.where(np.arange(8) % 2 == 0, radius, 0.28 * radius)
    points = np.stack([centre[0] + radii * np.sin(angles), centre[1] - radii * np.cos(angles)], 1)
    fill = colour if canvas.shape[2] == 3 else (*colour, WINGS)
    cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], fill, cv2.LINE_8, 4)


def paint_wings(canvas: np.ndarray, joints: Joints, figure: Figure, time_s: float) -> None:
    """Four translucent wings on the shoulders that beat three times a second."""
    flap = 0.22 * np.sin(2 * np.pi * 1.5 * time_s)
    spread = 0.35 + 0.65 * abs(joints.facing)
    u = joints.unit
    root = (0.5 * (joints.shoulder_l[0] + joints.shoulder_r[0]), joints.neck[1] + 0.07 * u)
    overlay = canvas.copy()
    brush = Brush(overlay, 0.009 * u)
    for sign in (-1.0, 1.0):
        for length, wide, angle, hue in ((0.40, 0.135, 0.62, 0.0), (0.27, 0.10, -0.42, 0.08)):
            bent = angle + flap
            tip = (np.cos(bent) * sign * spread, -np.sin(bent))
            centre = (root[0] + tip[0] * 0.55 * length * u, root[1] + tip[1] * 0.55 * length * u)
            degrees = float(np.degrees(np.arctan2(tip[1], tip[0])))
            rgb = _from_hue((figure.wing_hue + hue) % 1.0, saturation=0.32)
            brush.ellipse(centre, (0.5 * length * u, wide * u), rgb, WINGS, angle=degrees)
            inner = (0.30 * length * u, 0.55 * wide * u)
            brush.ellipse(centre, inner, tone(rgb, 1.5), WINGS, ink=False, angle=degrees)
    layers = overlay[..., 3].copy()
    cv2.addWeighted(overlay, 0.82, canvas, 0.18, 0, dst=canvas)
    canvas[..., 3] = layers


def paint_fairy_things(canvas: np.ndarray, joints: Joints, spots: np.ndarray, time_s: float) -> None:
    """Halo, butterflies and sparkles in front of everything; `spots` (8, 3) in 0..1 place them."""
    h, w = canvas.shape[:2]
    u, r = joints.unit, HEAD_RADIUS * joints.unit
    centre = (round(joints.head[0] * 16), round((joints.head[1] - 1.45 * r) * 16))
    for width, colour in ((0.024, _INK), (0.014, (255, 226, 96))):
        cv2.ellipse(canvas, centre, (round(0.82 * r * 16), round(0.24 * r * 16)), 0, 0, 360, (*colour, WINGS),
                    max(1, round(width * u)), cv2.LINE_8, 4)  # fmt: skip
    brush = Brush(canvas, 0.006 * u)
    for index, (x, y, s) in enumerate(spots[:3]):
        phase = 2 * np.pi * (0.5 * time_s + s)
        bx = (0.08 + 0.14 * x + 0.70 * (index % 2)) * w + 0.03 * w * np.sin(phase)
        by = (0.12 + 0.42 * y) * h + 0.035 * h * np.sin(2 * phase)
        beat = 0.35 + 0.65 * abs(np.sin(2 * np.pi * 1.9 * time_s + 6 * s))
        rgb = _from_hue(s, saturation=0.55)
        for sign in (-1.0, 1.0):
            size = (0.026 * h * beat, 0.034 * h)
            brush.ellipse((bx + sign * size[0], by), size, rgb, WINGS, angle=sign * 18)
    for x, y, s in spots[3:]:
        glow = max(0.0, np.sin(2 * np.pi * (0.9 * time_s + s)))
        _star(canvas, (x * w, (0.1 + 0.75 * y) * h), (0.012 + 0.022 * glow) * h, (255, 250, 200))
