"""How she dances: a choreography is a closed form of time, so that any frame can be drawn on its own.

Six dances, two tempos, two amplitudes, two leading sides. Everything that sets the motion is named in the prompt and
seen in the first frame; there is no hidden randomness, which is what makes PSNR against the target mean something.
Secondary motion (hair, skirt, wings) is the same closed form evaluated a moment earlier.

Angles in radians, lengths in figure heights, time in seconds. Arm angle 0 hangs down, pi/2 is level, pi is up.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

DANCES = ("twirl", "arm wave", "side step", "star jump", "hip sway", "high kick")
TEMPOS_HZ = {"slow": 0.625, "quick": 0.9375}
"""Whole cycles a second: 24 and 16 frames a cycle at 15 fps."""
AMPLITUDES = {"gently": 0.7, "boldly": 1.0}
SIDES = {"left": -1.0, "right": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choreography:
    """A dance with its beat, amplitude and phase."""

    dance: str
    tempo: str
    amplitude: str
    side: str

    @property
    def beat_hz(self) -> float:
        return TEMPOS_HZ[self.tempo]

    @property
    def phase(self) -> float:
        """Starting phase: a quarter beat in, towards the leading side, so that the first frame tells which it is."""
        return 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Joint angles and offsets at one time or, with arrays, at many. Left is the viewer's left."""

    root_x: np.ndarray
    root_y: np.ndarray
    yaw: np.ndarray
    lean: np.ndarray
    hip_x: np.ndarray
    head: np.ndarray
    arm_l: np.ndarray
    arm_r: np.ndarray
    elbow_l: np.ndarray
    elbow_r: np.ndarray
    leg_l: np.ndarray
    leg_r: np.ndarray
    knee_l: np.ndarray
    knee_r: np.ndarray

    def at(self, index: int) -> Pose:
        return Pose(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def draw_choreography(rng: np.random.Generator) -> Choreography:
    """A random choreography; every combination is equally likely."""
    return Choreography(
        dance=str(rng.choice(DANCES)),
        tempo=str(rng.choice(list(TEMPOS_HZ))),
        amplitude=str(rng.choice(list(AMPLITUDES))),
        side=str(rng.choice(list(SIDES))),
    )


def _eased(phase: np.ndarray) -> np.ndarray:
    """A sine that lingers at its ends, as a dancer does on the beat."""
    sine = np.sin(phase)
    return sine * (1.25 - 0.25 * sine * sine)


def pose_at(choreography: Choreography, time_s: np.ndarray) -> Pose:
    """Pose at each time, arrays of the shape of `time_s`."""
    t = np.asarray(time_s, dtype=np.float64)
    side = SIDES[choreography.side]
    gain = AMPLITUDES[choreography.amplitude]
    phase = 2 * np.pi * choreography.beat_hz * t + choreography.phase
    swing = _eased(phase) * side
    up = np.maximum(0.0, _eased(phase))
    down = np.maximum(0.0, -_eased(phase))
    lead, trail = (down, up) if side > 0 else (up, down)
    zero = np.zeros_like(t)
    p: dict[str, np.ndarray] = {f.name: zero for f in fields(Pose)}
    p |= {"arm_l": zero + 0.35, "arm_r": zero + 0.35, "elbow_l": zero + 0.3, "elbow_r": zero + 0.3}
    p |= {"leg_l": zero + 0.08, "leg_r": zero + 0.08, "root_y": 0.008 * np.abs(np.sin(phase)), "head": 0.06 * swing}
    match choreography.dance:
        case "twirl":
            p["yaw"] = side * (phase - choreography.phase + 0.3 * np.sin(phase) + 0.25)
            reach = 1.15 * gain + 0.25
            p["arm_l"] = reach + 0.15 * np.sin(2 * phase)
            p["arm_r"] = reach - 0.15 * np.sin(2 * phase)
            p["elbow_l"] = p["elbow_r"] = zero + 0.2
        case "arm wave":
            p["arm_l"] = 1.55 + 0.95 * gain * swing
            p["arm_r"] = 1.55 - 0.95 * gain * swing
            p["elbow_l"] = 0.75 * gain * np.sin(phase - 0.9) * side
            p["elbow_r"] = -0.75 * gain * np.sin(phase - 0.9) * side
            p["lean"] = 0.10 * gain * swing
        case "side step":
            p["root_x"] = 0.20 * gain * swing
            stride = 0.34 * gain * np.cos(phase)
            p["leg_l"] = 0.10 + np.maximum(0, -stride * side) + 0.10 * lead
            p["leg_r"] = 0.10 + np.maximum(0, stride * side) + 0.10 * trail
            p["knee_l"] = 0.5 * gain * np.maximum(0, -np.cos(phase) * side)
            p["knee_r"] = 0.5 * gain * np.maximum(0, np.cos(phase) * side)
            p["arm_l"] = 0.55 - 0.45 * gain * swing
            p["arm_r"] = 0.55 + 0.45 * gain * swing
            p["elbow_l"] = p["elbow_r"] = zero + 0.9
            p["lean"] = 0.12 * gain * np.cos(phase) * side
        case "star jump":
            p["root_y"] = 0.13 * gain * up - 0.035 * gain * down
            p["arm_l"] = 0.4 + 2.1 * gain * up
            p["arm_r"] = 0.4 + 2.1 * gain * up
            p["leg_l"] = 0.08 + 0.42 * gain * up
            p["leg_r"] = 0.08 + 0.42 * gain * up
            p["knee_l"] = p["knee_r"] = 0.5 * gain * down
            p["head"] = 0.08 * side * up
        case "hip sway":
            p["hip_x"] = 0.055 * gain * swing
            p["root_x"] = 0.03 * gain * swing
            p["lean"] = -0.24 * gain * swing
            p["arm_l"] = 2.45 + 0.35 * gain * swing
            p["arm_r"] = 2.45 - 0.35 * gain * swing
            p["elbow_l"] = p["elbow_r"] = zero + 0.55
            p["head"] = 0.16 * gain * swing
        case "high kick":
            p["leg_l"] = 0.08 + 1.35 * gain * lead
            p["leg_r"] = 0.08 + 1.35 * gain * trail
            p["arm_l"] = 1.15 + 0.35 * trail
            p["arm_r"] = 1.15 + 0.35 * lead
            p["elbow_l"] = p["elbow_r"] = zero + 0.25
            p["lean"] = 0.14 * gain * (lead - trail)
            p["root_y"] = 0.03 * gain * (up + down)
    return Pose(**p)
