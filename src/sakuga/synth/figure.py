"""Who dances: a figure's attributes, drawn from palettes of named colours, and the words that describe them.

Knows nothing of motion or of drawing. Every attribute follows from one random generator, so that a seed fixes the
figure. Colours are sRGB, 0..255.      Run: pytest tests/unit/test_synth.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RGB = tuple[int, int, int]

HAIR_COLOURS: dict[str, RGB] = {
    "black": (34, 28, 36),
    "brown": (116, 70, 38),
    "blonde": (240, 206, 104),
    "red": (196, 44, 30),
    "pink": (246, 142, 190),
    "blue": (58, 108, 222),
    "green": (52, 164, 92),
    "white": (240, 240, 246),
}

OUTFIT_COLOURS: dict[str, RGB] = {
    "red": (214, 40, 52),
    "orange": (246, 140, 38),
    "yellow": (250, 216, 60),
    "green": (48, 166, 82),
    "blue": (48, 94, 216),
    "purple": (136, 66, 192),
    "pink": (246, 120, 182),
    "white": (244, 244, 246),
}

SKIN_TONES: dict[str, RGB] = {
    "pale": (252, 226, 208),
    "fair": (244, 204, 176),
    "tan": (218, 168, 128),
    "brown": (164, 112, 78),
    "dark": (112, 74, 54),
}

HAIR_SHAPES = ("long hair", "a bob", "twin tails", "a ponytail", "short hair", "a bun")
OUTFITS = ("dress", "skirt", "jumpsuit", "tunic")
ACCESSORIES = ("no jewellery", "a hair bow", "glasses", "a necklace", "a scarf")
BACKGROUNDS = ("a sunny meadow", "a sandy beach", "a city street at night", "a stage at sunset", "a cosy room")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One dancer and where she stands."""

    hair_shape: str
    hair_colour: str
    outfit: str
    outfit_colour: str
    skin_tone: str
    accessory: str
    background: str
    height_rel: float
    """Height of the figure as a share of the stage, 0.74..0.80."""
    centre_rel: float
    """Horizontal place on the stage, 0.48..0.52 of its width."""
    wing_hue: float
    """Hue of the wings in the fairy world, 0..1."""

    @property
    def hair_rgb(self) -> RGB:
        return HAIR_COLOURS[self.hair_colour]

    @property
    def outfit_rgb(self) -> RGB:
        return OUTFIT_COLOURS[self.outfit_colour]

    @property
    def skin_rgb(self) -> RGB:
        return SKIN_TONES[self.skin_tone]


def draw_figure_attributes(rng: np.random.Generator) -> Figure:
    """A random figure; the order of the draws is part of the format, since it fixes what a seed means."""
    return Figure(
        hair_shape=str(rng.choice(HAIR_SHAPES)),
        hair_colour=str(rng.choice(list(HAIR_COLOURS))),
        outfit=str(rng.choice(OUTFITS)),
        outfit_colour=str(rng.choice(list(OUTFIT_COLOURS))),
        skin_tone=str(rng.choice(list(SKIN_TONES))),
        accessory=str(rng.choice(ACCESSORIES)),
        background=str(rng.choice(BACKGROUNDS)),
        height_rel=float(rng.uniform(0.74, 0.80)),
        centre_rel=float(rng.uniform(0.48, 0.52)),
        wing_hue=float(rng.uniform(0, 1)),
    )
