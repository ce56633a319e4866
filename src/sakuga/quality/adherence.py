"""Does the video show what its prompt names? Measured only where the answer is known: colours of synth prompts.

The prompts of `sakuga.synth` name the colours of hair and outfit, and the dance, which fixes where both are in every
frame. So each is looked for there: a frame is right if, of all colours that a prompt could name, the median of a box
is nearest to the named one. On the drawn targets themselves 99 % (live) and 95 % (fairy, whose light of turning hides
her for some frames) are right, by chance one in eight. A prompt that does not name all of that gives None: what cannot
be measured gets no number.

It sees nothing else of a prompt: not the place, not the accessory, and the dance only in so far as a dancer who is
elsewhere is not found.

Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_figures.py
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sakuga.quality.frames import Frames, check_video
from sakuga.synth import DANCES, HAIR_COLOURS, OUTFIT_COLOURS, Choreography
from sakuga.synth.choreography import AMPLITUDES, SIDES, TEMPOS_HZ, pose_at
from sakuga.synth.figure import HAIR_SHAPES, OUTFITS, RGB
from sakuga.synth.skeleton import HEAD_RADIUS, place_joints

Box = tuple[int, int, int, int]
SYNTH_FPS = 15.0
MEAN_HEIGHT_REL, CENTRE_REL, FLOOR_REL = 0.77, 0.5, 0.93  # a dancer of mean size at the mean place
BOX_HALF_UNITS = 0.045 / MEAN_HEIGHT_REL
"""Half the width of a colour box, in heights of the dancer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a synth prompt names."""

    hair_colour: str
    outfit_colour: str
    choreography: Choreography


@dataclass(frozen=True, slots=True, kw_only=True)
class Adherence:
    """Shares of the frames in which a colour is the named one, 0 to 1; None beside a note: could not be measured."""

    hair: float | None = None
    outfit: float | None = None
    note: str | None = None

    @property
    def mean(self) -> float | None:
        return None if self.hair is None or self.outfit is None else (self.hair + self.outfit) / 2


def adherence(video_THWC: Frames, prompt: str, fps: float = SYNTH_FPS) -> Adherence:
    """Colours of hair and outfit against those that the prompt names. Raises VideoError unless uint8 RGB frames."""
    check_video(video_THWC)
    named = named_attributes(prompt)
    if isinstance(named, str):
        return Adherence(note=f"prompt adherence: the prompt names no {named} that can be looked for")
    _, height, width, _ = video_THWC.shape
    if min(height, width) < 32:
        return Adherence(note=f"prompt adherence: a dancer cannot be told in {width}x{height}")
    hits = []
    for t, frame_HWC in enumerate(video_THWC):
        hair_box, outfit_box = colour_boxes(named.choreography, width, height, t / fps)
        hair = nearest_colour(frame_HWC, hair_box, HAIR_COLOURS) == named.hair_colour
        hits.append((hair, nearest_colour(frame_HWC, outfit_box, OUTFIT_COLOURS) == named.outfit_colour))
    hair_share, outfit_share = np.mean(hits, axis=0)
    return Adherence(hair=float(hair_share), outfit=float(outfit_share))


def named_attributes(prompt: str) -> Named | str:
    """What the prompt names, or the word for the first thing that it does not.

    >>> named_attributes("A dancer with a green bob in a red dress, quick star jumps boldly, to the left.").hair_colour
    'green'
    >>> named_attributes("A cat in the rain.")
    'hair colour'
    """
    text = " ".join(prompt.lower().split())
    shapes = {shape.split(" ")[-1] for shape in HAIR_SHAPES}
    hair = _found(rf"\b({_any(HAIR_COLOURS)}) (?:twin )?(?:{_any(shapes)})\b", text)
    outfit = _found(rf"\b({_any(OUTFIT_COLOURS)}) (?:{_any(OUTFITS)})\b", text)
    tempo_dance = re.search(rf"\b({_any(TEMPOS_HZ)}) ({_any(DANCES)})s?\b", text)
    amplitude = _found(rf"\b({_any(AMPLITUDES)})\b", text)
    side = _found(rf"\b(?:to the ({_any(SIDES)})\b|({_any(SIDES)}) side first)", text)
    if hair is None:
        return "hair colour"
    if outfit is None:
        return "outfit colour"
    if tempo_dance is None or amplitude is None or side is None:
        return "dance, by tempo, vigour and side,"
    dance = Choreography(dance=tempo_dance[2], tempo=tempo_dance[1], amplitude=amplitude, side=side)
    return Named(hair_colour=hair, outfit_colour=outfit, choreography=dance)


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words))


def _found(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return next(filter(None, found.groups())) if found else None


def colour_boxes(choreography: Choreography, width: int, height: int, time_s: float = 0.0) -> tuple[Box, Box]:
    """Boxes (x0, x1, y0, y1) on hair and torso of a dancer of mean size, at a time of this choreography."""
    pose = pose_at(choreography, np.array([time_s])).at(0)
    unit = MEAN_HEIGHT_REL * min(height, 1.15 * width)
    joints = place_joints(pose, CENTRE_REL * width, FLOOR_REL * height, unit)
    radius, half = HEAD_RADIUS * joints.unit, BOX_HALF_UNITS * unit

    def box(x: float, top: float, bottom: float) -> Box:
        return round(x - half), round(x + half), round(top), round(bottom)

    head_x, head_y = joints.head
    torso_x = 0.5 * (joints.neck[0] + joints.pelvis[0])
    reach = joints.pelvis[1] - joints.neck[1]
    hair = box(head_x, head_y - 0.85 * radius, head_y - 0.45 * radius)
    return hair, box(torso_x, joints.neck[1] + 0.3 * reach, joints.neck[1] + 0.8 * reach)


def nearest_colour(frame_HWC: Frames, box: Box, palette: Mapping[str, RGB]) -> str:
    """The palette's name for the median colour of a box, or of the one pixel that is left of a smaller one."""
    height, width, _ = frame_HWC.shape
    x0, y0 = min(max(box[0], 0), width - 1), min(max(box[2], 0), height - 1)
    pixels = frame_HWC[y0 : max(box[3], y0 + 1), x0 : max(box[1], x0 + 1)].reshape(-1, 3)
    median = np.median(pixels, axis=0)
    return min(palette, key=lambda name: float(np.sum((median - np.array(palette[name])) ** 2)))
