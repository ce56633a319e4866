"""Weight files: find those of a card in a storage, check that they are whole, and say which weights they are.

Works on names and bytes; nothing is loaded into a model here.     Run: pytest tests/unit/test_loading.py
"""

import hashlib
import json
import logging
import os
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from sakuga.errors import WeightsError
from sakuga.media.files import sha256_of
from sakuga.storage import Storage, StoredFile
from sakuga.wan.cards import CardFile, ModelCard

logger = logging.getLogger(__name__)

CONVERTED_ID = "DiffSynth-Studio/Wan-Series-Converted-Safetensors"
CONVERTED = (
    "models_t5_umt5-xxl-enc-bf16",
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14",
    "Wan2.1_VAE",
    "Wan2.2_VAE",
)
"""Files that DiffSynth's downloader takes from that repository as safetensors instead of the card's .pth."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
    "U16": 16, "U32": 32, "U64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip
REMEMBERED_FROM_BYTES = 1 << 26
"""Hashes of files from 64 MB on are kept on disk: a 14B model takes a minute to hash, the mini 20 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPart:
    """The local files of one part of a card."""

    file: CardFile
    paths: tuple[Path, ...]
    """Shards in order; for the tokenizer all files of its folder."""


def find_parts(card: ModelCard, storage: Storage) -> tuple[WeightPart, ...]:
    """All files of the card on this machine, downloaded if the storage is remote.

    Accepts `ROOT/<model id>/<pattern>` (DiffSynth's own layout) and `ROOT/<pattern>`. Raises one WeightsError that
    names everything that is missing.
    """
    found = {file: _find(file, storage) for file in card.files}
    missing = [f"{file.pattern} ({file.model_id})" for file, stored in found.items() if not stored]
    missing += [name for stored in found.values() for name in missing_shards([entry.name for entry in stored])]
    if missing:
        raise WeightsError(
            f"{card.name} is not complete in {storage.address}, missing: {', '.join(missing)}; "
            f"`sakuga models fetch {card.name}` downloads what is missing"
        )
    return tuple(
        WeightPart(file=file, paths=tuple(storage.fetch(entry) for entry in stored)) for file, stored in found.items()
    )


def _find(file: CardFile, storage: Storage) -> tuple[StoredFile, ...]:
    pattern = f"{file.pattern}*" if file.pattern.endswith("/") else file.pattern
    candidates = [(file.model_id, pattern)]
    stem, dot, suffix = pattern.rpartition(".")
    if dot and suffix == "pth" and stem in CONVERTED:
        candidates.insert(0, (CONVERTED_ID, f"{stem}.safetensors"))
    for model_id, name in candidates:
        for full in (f"{model_id}/{name}", name):
            if stored := storage.find(full):
                return stored
    return ()


def missing_shards(names: Sequence[str]) -> list[str]:
    """Files that a numbered series lacks.

    >>> missing_shards(["m-00001-of-00003.bin", "m-00003-of-00003.bin"])
    ['m-00002-of-00003.bin']
    """
    missing = []
    series = re.compile(r"(.*-)\d{5}(-of-(\d{5})\..*)")
    for head, tail, total in {match.groups() for name in names if (match := series.fullmatch(name))}:
        expected = [f"{head}{index:05}{tail}" for index in range(1, int(total) + 1)]
        missing += [name for name in expected if name not in names]
    return sorted(missing)


def check_file(path: Path) -> None:
    """Raise WeightsError, naming the file, if it is empty, truncated or not what its suffix says."""
    if path.suffix == ".safetensors":
        check_safetensors(path)
    elif path.suffix == ".pth" and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is damaged or cut off: it is no PyTorch archive; download it again")


def check_safetensors(path: Path) -> None:
    """Header and length of one safetensors file, in milliseconds; the values are not looked at."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        num_header = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER_BYTES + 1
        if num_header > min(MAX_HEADER_BYTES, size - 8):
            raise WeightsError(f"{path} is damaged or cut off: {size} bytes, no whole safetensors header; get it again")
        raw = file.read(num_header)
    try:
        tensors = {name: entry for name, entry in json.loads(raw).items() if name != "__metadata__"}
        ends = [_checked_end(entry) for entry in tensors.values()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"{path} is damaged: its safetensors header cannot be read ({error}); get it again"
        ) from error
    expected = 8 + num_header + max(ends, default=0)
    if size != expected:
        raise WeightsError(f"{path} is damaged or cut off: {size} bytes where its header says {expected}; get it again")


def _checked_end(entry: dict) -> int:
    """Where a tensor ends in the data; ValueError when its place and its shape disagree."""
    start, end = entry["data_offsets"]
    bits = DTYPE_BITS.get(entry["dtype"])
    if bits is not None and (end - start) * 8 != prod(entry["shape"]) * bits:
        raise ValueError(f"{end - start} bytes for the shape {entry['shape']}")
    return int(end)


def weights_identity(parts: Sequence[WeightPart], cache_dir: Path) -> tuple[str, dict[str, str]]:
    """One sha256 over all files of a model, and that of each file by "part/name".

    Independent of folders and of the layout; every bit of every file counts, the tokenizer's too.
    """
    hashes = {
        f"{part.file.part}/{path.name}": file_sha256(path, cache_dir) for part in parts for path in sorted(part.paths)
    }
    canonical = json.dumps(hashes, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest(), hashes


def file_sha256(path: Path, cache_dir: Path | None = None) -> str:
    """sha256 of a file. That of a large one is remembered by path, size and modification time, where that works."""
    stat = path.stat()
    if cache_dir is None or stat.st_size < REMEMBERED_FROM_BYTES:
        return sha256_of(path)
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    note = cache_dir / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
    try:
        if note.is_file():
            return note.read_text()
    except OSError as error:
        logger.warning("remembered hash %s cannot be read (%s), hashing again", note, error)
    digest = sha256_of(path)
    _remember(note, digest)
    return digest


def _remember(note: Path, digest: str) -> None:
    """Only saves time: a cache folder that cannot be written costs the minute again, not the render."""
    part = note.with_suffix(f".{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(digest)
            os.replace(part, note)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        logger.warning(
            "hash not remembered, %s cannot be written (%s); set SAKUGA_CACHE to a folder that can", note, error
        )
