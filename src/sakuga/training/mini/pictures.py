"""Pictures for training: dancers from `synth`, and crops of photographs and textures that are no drawn figures.

Photographs are those that scikit-image ships, never the astronaut: it is the demo's proof that a photo the model
has not seen works.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np

_PHOTOS = ("coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "hubble_deep_field.jpg",
           "camera.png", "coins.png", "grass.png", "gravel.png", "brick.png", "moon.png")  # fmt: skip


def load_photos(folder: Path | None = None) -> list[np.ndarray]:
    """scikit-image's photographs (or all pictures of `folder`) as uint8 HWC RGB.

    Raises FileNotFoundError where there are none: a model trained without them fails on real photographs.
    """
    if folder is None:
        spec = importlib.util.find_spec("skimage")
        if spec is None or spec.origin is None:
            raise FileNotFoundError("scikit-image is not installed: install it, or name a folder with --photos")
        folder = Path(spec.origin).parent / "data"
        paths = [folder / name for name in _PHOTOS]
    else:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    photos = {path: cv2.imread(str(path), cv2.IMREAD_COLOR) for path in paths}
    unread = [path.name for path, photo in photos.items() if photo is None]
    if unread or not photos:
        what = f"cannot read {', '.join(unread)}" if unread else "there are none"
        raise FileNotFoundError(f"photographs in {folder}: {what}; name another folder with --photos")
    return [np.ascontiguousarray(photo[..., ::-1]) for photo in photos.values() if photo is not None]


def photo_crop(photos: list[np.ndarray], rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A random crop at a random scale, mirrored half of the time, uint8 (height, width, 3)."""
    photo = photos[int(rng.integers(len(photos)))]
    share = float(np.exp(rng.uniform(np.log(0.25), 0.0)))
    scale = min(photo.shape[0] / height, photo.shape[1] / width) * share
    h, w = max(8, int(height * scale)), max(8, int(width * scale))
    top, left = int(rng.integers(photo.shape[0] - h + 1)), int(rng.integers(photo.shape[1] - w + 1))
    crop = cv2.resize(photo[top : top + h, left : left + w], (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(crop[:, ::-1]) if rng.random() < 0.5 else crop


def panning_clip(photos: list[np.ndarray], rng: np.random.Generator, num_frames: int, size: int) -> np.ndarray:
    """A clip (T, size, size, 3) in which a crop pans, so that the VAE also sees photographs move."""
    large = photo_crop(photos, rng, size + 32, size + 32)
    start, speed = rng.uniform(8, 24, 2), rng.uniform(-1.5, 1.5, 2)
    offsets = np.clip(start + speed * np.arange(num_frames)[:, None], 0, 31).astype(int)
    return np.stack([large[y : y + size, x : x + size] for y, x in offsets])
