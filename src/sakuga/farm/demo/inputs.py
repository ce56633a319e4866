"""The demo's manifest and the pictures that it names, drawn or cropped when the demo runs.

Knows neither Ray nor models. Pixels are the same in every run, so that a second demo finds its videos finished.

Run: pytest tests/unit/test_demo_inputs.py
"""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sakuga.media import save_image, write_bytes_atomic
from sakuga.synth import HELD_OUT_SEED, World, make_sample

MANIFEST_NAME = "manifest.jsonl"

KINDS = {
    "dancer-from-text": "From words alone",
    "dancer-from-drawing": "From a drawing",
    "fairy-from-drawing": "From a drawing, as a fairy",
    "fairy-from-photo": "From a photograph, as a fairy",
    "fairy-between-two-frames": "Between a first and a last frame",
    "fairy-from-text": "From words alone, as a fairy",
}
"""What each row of the manifest shows, by its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One frame of a procedural dancer whom no model has seen."""

    seed: int
    world: World
    frame: int


DRAWINGS = {
    "inputs/beach.png": Drawing(seed=HELD_OUT_SEED + 2, world="live", frame=0),
    "inputs/stage.png": Drawing(seed=HELD_OUT_SEED + 21, world="live", frame=0),
    "inputs/night-first.png": Drawing(seed=HELD_OUT_SEED + 13, world="live", frame=0),
    "inputs/night-last.png": Drawing(seed=HELD_OUT_SEED + 13, world="fairy", frame=-1),
}
PHOTO = "inputs/astronaut.png"
PHOTO_CROP = (20, 0, 420, 400)  # left, top, right, bottom: head and arms, of 512 x 512


def write_demo(out: Path) -> Path:
    """Write manifest and pictures into `out`; gives the manifest. Raises DiskFullError or OutputError."""
    (out / "inputs").mkdir(exist_ok=True)
    for name, drawing in DRAWINGS.items():
        save_image(out / name, Image.fromarray(_frame(drawing)))
    save_image(out / PHOTO, astronaut())
    manifest = out / MANIFEST_NAME
    write_bytes_atomic(manifest, manifest_text().encode())
    return manifest


def manifest_text() -> str:
    """The rows, as JSONL."""
    return importlib.resources.files("sakuga.farm.demo").joinpath(MANIFEST_NAME).read_text("utf-8")


def astronaut() -> Image.Image:
    """The upper body of Eileen Collins, NASA, public domain; it lies in scikit-image's package, nothing is fetched."""
    from skimage.data import astronaut as picture  # 0.3 s to import

    return Image.fromarray(picture()).crop(PHOTO_CROP)


def _frame(drawing: Drawing) -> np.ndarray:
    return make_sample(drawing.seed, drawing.world).video_THWC[drawing.frame]
