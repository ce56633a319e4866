"""What a training data set holds: a folder's or a metadata file's samples, as paths and texts; no picture is opened.

    DATA/metadata.csv, .json or .jsonl     DiffSynth's columns: video or image, prompt, input_image, end_image ...
    DATA/train/metadata.csv, DATA/test/metadata.csv     as `sakuga synth` writes; the split of the folders is kept
    DATA/**/a.mp4 or a.png with a.txt      videos and pictures, each with its caption beside it

A sample that cannot be used is a `Rejection` and the others go on; DataError is for data that cannot be read at all.

Run: pytest tests/unit/test_training_layouts.py
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sakuga.errors import DataError, InputError, did_you_mean, shown
from sakuga.recipe.limits import MAX_SEED, check_prompt
from sakuga.training.prepared import SPLITS

METADATA = ("metadata.csv", "metadata.json", "metadata.jsonl")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
IMAGE_COLUMNS = {
    "input_image": "input_image", "end_image": "end_image", "reference_image": "reference_image",
    "vace_reference_image": "reference_image",
}  # fmt: skip
VIDEO_COLUMNS = {"control_video": "control_video", "vace_video": "vace_video", "vace_video_mask": "vace_mask"}
"""DiffSynth's columns to the roles of a recipe."""
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
TEST_SHARE = 10
"""One file in ten is held out."""

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSample:
    """One clip or picture to learn, with what is given with it; the files exist."""

    name: str
    """As the user knows it: the path of the target in the data set."""
    target: Path
    prompt: str
    images: Mapping[str, Path] = field(default_factory=dict)
    """By role of a recipe: input_image, end_image, reference_image."""
    videos: Mapping[str, Path] = field(default_factory=dict)
    """control_video, vace_video, vace_mask."""
    layers: Path | None = None
    """npz with `layers_THW`, the index of the layer that a pixel shows, 0 for the background."""
    seed: int | None = None
    split: str | None = None
    """Where the data set says it; else it follows from the content, by `split_of`."""
    notes: tuple[str, ...] = ()

    @property
    def is_picture(self) -> bool:
        return self.target.suffix.lower() in PICTURE_SUFFIXES


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A sample that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """What was found."""

    samples: tuple[SourceSample, ...]
    rejections: tuple[Rejection, ...]
    num_left_out: int = 0
    """Rows that the filter left out."""


def read_data(data: Path, *, where: Mapping[str, str] | None = None, prompt: str | None = None) -> DataSet:
    """All samples of a folder or a metadata file; `where` keeps the rows whose columns have these values.

    `prompt` stands in where a sample has no caption or an empty one. Raises DataError for data of no known layout, a
    metadata file that cannot be read, or a filter on a column that is not there.
    """
    if not data.exists():
        raise DataError(f"{shown(data)} does not exist; give a folder with videos or pictures, or a metadata file")
    sources = _metadata_files(data)
    if not sources and where:
        raise DataError(f"{shown(data)} has no metadata file, so there are no columns to filter by; leave --where out")
    if sources:
        found, num_left_out = [], 0
        for path, split in sources:
            rows = [row for row in _rows(path) if any(_text_of(value) for value in row.values())]
            kept = _filtered(path, rows, where or {})
            num_left_out += len(rows) - len(kept)
            prefix = f"{split}/" if split else ""
            found += [_attempt(f"{prefix}{_name(row)}", _from_row, path, row, split, prompt) for row in kept]
    else:
        found, num_left_out = [_attempt(_relative(path, data), _from_file, path, prompt) for path in _media(data)], 0
        if not found:
            raise DataError(
                f"{shown(data)} holds neither {METADATA[0]} (.json, .jsonl) nor a video or picture; accepted are "
                f"{', '.join((*VIDEO_SUFFIXES, *PICTURE_SUFFIXES))}"
            )
    found = _without_doubles(found, captions_beside=not sources)
    return DataSet(
        samples=tuple(entry for entry in found if isinstance(entry, SourceSample)),
        rejections=tuple(entry for entry in found if isinstance(entry, Rejection)),
        num_left_out=num_left_out,
    )


def split_of(sha256s: Sequence[str]) -> list[str]:
    """ "train" or "test" for each content: one in ten is held out, whatever its name and whoever else is there.

    Of two or more contents at least one is on each side, which for few is the one with the highest or lowest hash.

    >>> split_of(["00" * 32, "ff" * 32, "00" * 32])
    ['train', 'test', 'train']
    """
    contents = sorted(set(sha256s))
    held_out = {sha256 for sha256 in contents if int(sha256[:8], 16) % TEST_SHARE == 9}
    if len(contents) > 1 and not held_out:
        held_out = {contents[-1]}
    if len(contents) > 1 and len(held_out) == len(contents):
        held_out.remove(contents[0])
    return ["test" if sha256 in held_out else "train" for sha256 in sha256s]


def _metadata_files(data: Path) -> list[tuple[Path, str | None]]:
    """Metadata files and the split that each one is."""
    if data.is_file():
        return [(data, None)]
    for split, folders in ((None, [data]), ("", [data / name for name in SPLITS])):
        found = [(folder / name, folder) for folder in folders for name in METADATA if (folder / name).is_file()]
        folders_found = [folder for _, folder in found]
        if len(set(folders_found)) < len(folders_found):
            names = ", ".join(path.name for path, _ in found)
            raise DataError(f"{shown(data)} has more than one metadata file ({names}); name the one to read")
        if found:
            return [(path, None if split is None else folder.name) for path, folder in found]
    return []


def _rows(path: Path) -> list[Row]:
    """Raises DataError for a file that cannot be read as a whole."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".jsonl"):
        raise DataError(f"{shown(path)} is no metadata file; give a folder, or a .csv, .json or .jsonl")
    text, _ = read_text(path)
    try:
        if suffix == ".csv":
            return list(_csv_rows(text))
        values = (
            json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{shown(path)} cannot be read ({error}); write it again") from error
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{shown(path)} must hold one object a sample; write a list of them, or one a line in a .jsonl")
    return values


def _csv_rows(text: str) -> Iterator[Row]:
    for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
        yield {name: value for name, value in row.items() if name is not None}


def read_text(path: Path) -> tuple[str, str | None]:
    """A text file, and a note when it is not UTF-8. Raises DataError when it cannot be read or decoded."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read ({error.strerror or error}); check it") from error
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise DataError(f"{shown(path)} is not {encoding.upper()}; save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{shown(path)} looks like UTF-16 without a byte order mark; save it as UTF-8")
    return text, None if encoding.startswith("utf-8") else f"{path.name} is {encoding.upper()}, read as such"


def _filtered(path: Path, rows: list[Row], where: Mapping[str, str]) -> list[Row]:
    columns = {name for row in rows for name in row}
    for name in where:
        if rows and name not in columns:
            hint, names = did_you_mean(name, columns), ", ".join(sorted(columns))
            raise DataError(f"{shown(path)} has no column {shown(name)}{hint or ';'} there are {names}")
    return [row for row in rows if all(_text_of(row.get(name)) == value for name, value in where.items())]


def _attempt(name: str, make: Callable[..., SourceSample], *given: object) -> SourceSample | Rejection:
    try:
        return make(name, *given)
    except InputError as error:
        return Rejection(name=name, reason=error.message)


def _from_row(name: str, metadata: Path, row: Row, split: str | None, prompt: str | None) -> SourceSample:
    target = _file(metadata, row, "video") or _file(metadata, row, "image")
    if target is None:
        raise DataError("the row names no file; fill in the column video or image")
    if target.suffix.lower() not in (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES):
        raise DataError(f"{shown(target.name)} is no video or picture by its suffix; convert it to mp4 or png")
    images = {role: path for column, role in IMAGE_COLUMNS.items() if (path := _file(metadata, row, column))}
    videos = {role: path for column, role in VIDEO_COLUMNS.items() if (path := _file(metadata, row, column))}
    seed = _text_of(row.get("seed"))
    if seed and not (seed.isdecimal() and int(seed) <= MAX_SEED):
        raise DataError(f"seed is {shown(seed)}; it must be a whole number from 0 to 2^63-1, or left out")
    text, notes = _caption(_text_of(row.get("prompt")), prompt)
    return SourceSample(
        name=name, target=target, prompt=text, images=images, videos=videos, layers=_file(metadata, row, "layers"),
        seed=int(seed) if seed else None, split=split, notes=notes,
    )  # fmt: skip


def _from_file(name: str, path: Path, prompt: str | None) -> SourceSample:
    beside = path.with_suffix(".txt")
    if not beside.is_file() and prompt is None:
        raise DataError(f"no caption: write {beside.name} beside it, or give one text for all without with --prompt")
    written, encoding_note = read_text(beside) if beside.is_file() else ("", None)
    text, notes = _caption(written.strip(), prompt)
    return SourceSample(name=name, target=path, prompt=text, notes=(*notes, *filter(None, [encoding_note])))


def _caption(written: str, otherwise: str | None) -> tuple[str, tuple[str, ...]]:
    if not written.strip() and otherwise is not None:
        return otherwise, ("without a caption, so --prompt stands for it",)
    if not written.strip():
        raise DataError("the caption is empty; write what is to be seen, or give one for all without with --prompt")
    return check_prompt("the caption", written), ()


def _file(metadata: Path, row: Row, column: str) -> Path | None:
    """The file that a cell names, beginning at the folder of the metadata. Raises DataError when it is not there."""
    value = row.get(column)
    if isinstance(value, list):  # DiffSynth takes lists of reference images
        if len(value) > 1:
            raise DataError(f"{column} names {len(value)} files; give one")
        value = value[0] if value else None
    text = _text_of(value)
    if not text:
        return None
    path = metadata.parent / text
    if not path.is_file():
        raise DataError(
            f"{column} {shown(text)} does not exist or is not a file; paths begin at {shown(metadata.parent)}"
        )
    return path


def _text_of(value: object) -> str:
    return "" if value is None else str(value).strip()


def _name(row: Row) -> str:
    return _text_of(row.get("video")) or _text_of(row.get("image")) or "a row without a file"


def _media(folder: Path) -> Iterator[Path]:
    suffixes = (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in suffixes and path.is_file() and not hidden:
            yield path


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _without_doubles(
    found: Sequence[SourceSample | Rejection], *, captions_beside: bool
) -> list[SourceSample | Rejection]:
    """The first sample of a name stays. Beside captions the suffix does not count: whose a.txt would be is open."""
    first: dict[Path, str] = {}
    result: list[SourceSample | Rejection] = []
    for entry in found:
        if isinstance(entry, SourceSample):
            key = entry.target.with_suffix("") if captions_beside else entry.target.resolve()
            if key in first:
                reason = f"duplicate name: {shown(first[key])} stands before it; keep one of them"
                entry = Rejection(name=entry.name, reason=reason)
            else:
                first[key] = entry.name
        result.append(entry)
    return result
