"""A data set of dancers on disk, in the layout that DiffSynth's `UnifiedDataset` reads.

    OUT/train/metadata.csv, OUT/test/metadata.csv       paths in them are relative to their folder
    OUT/train/000012_fairy/{video,control,vace,vace_mask}.mp4, first.png, layers.npz, prompt.txt
    OUT/settings.json                                   sizes that all samples of the folder were drawn with

A group is one seed: the same figure and dance in both worlds. Every tenth seed is a test group, so that no figure is
on both sides. That split is for models trained on the folder: the embedded Wan-mini was trained on seeds below 2**26,
those of test groups too, so judge it on held-out seeds only, `first_seed=HELD_OUT_SEED` (67108864).

Run: pytest tests/unit/test_synth_dataset.py
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sakuga.errors import GeometryError, InputError, did_you_mean, shown
from sakuga.media import atomic_file, check_output_dir, save_image, write_bytes_atomic, write_json_atomic, write_mp4
from sakuga.synth.sample import HELD_OUT_SEED, Sample, World, make_sample

PRESETS = {"small": 50, "full": 5000}
"""Groups of a preset."""
WORLDS: tuple[World, ...] = ("live", "fairy")
COLUMNS = (
    "video", "prompt", "input_image", "control_video", "vace_video", "vace_video_mask", "layers", "world", "seed",
)  # fmt: skip
SETTINGS_NAME = "settings.json"
MIN_SIZE_PX = 32  # `make_sample` draws no figure in less
_FILES = ("prompt.txt", "video.mp4", "first.png", "control.mp4", "vace.mp4", "vace_mask.mp4", "layers.npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """What a call of `write_dataset` left in the folder."""

    folder: Path
    num_train: int
    num_test: int
    num_drawn: int
    """Samples that this call drew; the others were there already."""


def is_test_seed(seed: int) -> bool:
    """One group in ten, and every seed that is held out for ever."""
    return seed % 10 == 9 or seed >= HELD_OUT_SEED


def write_dataset(
    folder: Path,
    preset: str = "small",
    *,
    num_groups: int | None = None,
    first_seed: int = 0,
    width: int = 128,
    height: int = 128,
    num_frames: int = 33,
    fps: int = 15,
    on_sample: Callable[[int, int], None] | None = None,
) -> DatasetSummary:
    """Draw `preset` (or `num_groups`) groups into `folder`; what is complete there is kept.

    `on_sample(done, total)` is called after each sample. Raises InputError for an unknown preset or when the folder
    holds samples of other settings, GeometryError for a size or length that cannot be drawn, OutputError or
    DiskFullError when the folder cannot be written; metadata is written last, so it names only whole samples.
    """
    if num_groups is None:
        if preset not in PRESETS:
            names = ", ".join(PRESETS)
            raise InputError(f"preset '{preset}' is unknown{did_you_mean(preset, PRESETS)}; take one of {names}")
        num_groups = PRESETS[preset]
    if num_groups < 1 or first_seed < 0:
        raise InputError(f"{num_groups} groups from seed {first_seed} on: take at least 1 group and a seed >= 0")
    _check_geometry(width, height, num_frames, fps)
    check_output_dir(folder)
    _keep_settings(folder, {"width": width, "height": height, "num_frames": num_frames, "fps": fps})
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    total, drawn = num_groups * len(WORLDS), 0

    def produce(task: tuple[int, World]) -> tuple[str, dict[str, str], bool]:
        seed, world = task
        split = "test" if is_test_seed(seed) else "train"
        home = folder / split / f"{seed:06d}_{world}"
        sample = None
        if not all((home / name).exists() for name in _FILES):
            sample = make_sample(seed, world, width=width, height=height, num_frames=num_frames, fps=fps)
            _write_sample(home, sample)
        prompt = sample.prompt if sample else (home / "prompt.txt").read_text(encoding="utf-8")
        return split, _row(home.name, prompt, world, seed), sample is not None

    # Threads, since most of the time goes to ffmpeg and OpenCV, which leave the interpreter free.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, (split, row, is_new) in enumerate(pool.map(produce, _tasks(first_seed, num_groups)), start=1):
            rows[split].append(row)
            drawn += is_new
            if on_sample is not None:
                on_sample(done, total)
    for split, lines in rows.items():
        check_output_dir(folder / split)
        _write_metadata(folder / split / "metadata.csv", lines)
    return DatasetSummary(folder=folder, num_train=len(rows["train"]), num_test=len(rows["test"]), num_drawn=drawn)


def _check_geometry(width: int, height: int, num_frames: int, fps: int) -> None:
    if min(width, height) < MIN_SIZE_PX or width % 2 or height % 2:  # yuv420p halves both sides
        raise GeometryError(f"{width}x{height} cannot be drawn: take even sizes of at least {MIN_SIZE_PX}")
    if num_frames < 1 or fps < 1:
        raise GeometryError(f"{num_frames} frames at {fps} a second cannot be drawn: take at least 1 of each")


def _keep_settings(folder: Path, settings: dict[str, int]) -> None:
    """Write the settings into a new folder; refuse a folder whose samples have others, since they would stay."""
    path = folder / SETTINGS_NAME
    if path.exists():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{shown(path)} is damaged ({error}); take another folder") from error
        others = [
            f"{name} {known.get(name)}, not {value}" for name, value in settings.items() if known.get(name) != value
        ]
        if others:
            raise InputError(
                f"the samples in {shown(folder)} have {', '.join(others)}; take another folder or the same settings"
            )
    elif next(folder.glob("*/*/video.mp4"), None) is not None:
        raise InputError(f"{shown(folder)} holds samples but no {SETTINGS_NAME}; take another folder")
    else:
        write_json_atomic(path, settings)


def _tasks(first_seed: int, num_groups: int) -> Iterator[tuple[int, World]]:
    for seed in range(first_seed, first_seed + num_groups):
        for world in WORLDS:
            yield seed, world


def _write_sample(home: Path, sample: Sample) -> None:
    check_output_dir(home)
    write_bytes_atomic(home / "prompt.txt", sample.prompt.encode())
    write_mp4(home / "video.mp4", sample.video_THWC, sample.fps)
    write_mp4(home / "control.mp4", sample.control_video_THWC, sample.fps)
    write_mp4(home / "vace.mp4", sample.vace_video_THWC, sample.fps)
    write_mp4(home / "vace_mask.mp4", np.repeat(sample.vace_mask_THW[..., None], 3, axis=-1), sample.fps)
    save_image(home / "first.png", Image.fromarray(sample.input_image_HWC))
    with atomic_file(home / "layers.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, layers_THW=sample.layers_THW, figure_mask_THW=sample.figure_mask_THW)


def _row(name: str, prompt: str, world: str, seed: int) -> dict[str, str]:
    files = {"video": "video.mp4", "input_image": "first.png", "control_video": "control.mp4",
             "vace_video": "vace.mp4", "vace_video_mask": "vace_mask.mp4", "layers": "layers.npz"}  # fmt: skip
    return {column: f"{name}/{file}" for column, file in files.items()} | {
        "prompt": prompt, "world": world, "seed": str(seed),
    }  # fmt: skip


def _write_metadata(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes_atomic(path, text.getvalue().encode())
