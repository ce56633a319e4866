"""How much `ray job submit --working-dir .` would upload, without asking Ray.

Ray leaves out what .gitignore and .rayignore name. We read the common part of that language: comments, folders,
wildcards, a leading slash for the root. A pattern with "!" is not followed, so the true size can be a little larger.

Run: pytest tests/unit/test_doctor.py
"""

import fnmatch
import os
from dataclasses import dataclass
from pathlib import Path

UPLOAD_LIMIT_BYTES = 512 * 2**20
IGNORE_FILES = (".gitignore", ".rayignore")
MAX_ENTRIES = 200_000  # a home folder given by mistake must not keep the doctor busy for minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What would be packed."""

    size_bytes: int
    largest: tuple[str, ...]
    """The three largest entries of the top level, with their sizes."""
    is_complete: bool
    """False when the folder has more files than were counted."""


def measure_upload(folder: Path) -> Upload:
    """Sum up what is not ignored below `folder`; stops counting after `MAX_ENTRIES` files."""
    patterns = _patterns(folder)
    per_top: dict[str, int] = {}
    entries = 0
    for current, folders, files in os.walk(folder):
        relative = Path(current).relative_to(folder)
        folders[:] = [name for name in folders if not is_ignored((relative / name).as_posix(), patterns)]
        for name in files:
            path = relative / name
            full = folder / path
            if is_ignored(path.as_posix(), patterns) or not full.is_file():
                continue
            per_top[path.parts[0]] = per_top.get(path.parts[0], 0) + full.lstat().st_size
        entries += len(files)
        if entries > MAX_ENTRIES:
            break
    largest = sorted(per_top, key=lambda name: -per_top[name])[:3]
    return Upload(
        size_bytes=sum(per_top.values()),
        largest=tuple(f"{name} {per_top[name] / 2**20:.0f} MiB" for name in largest),
        is_complete=entries <= MAX_ENTRIES,
    )


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether a path relative to the root, with forward slashes, matches one of the patterns.

    >>> is_ignored("out/a.mp4", ["/out"]), is_ignored("src/out/a.mp4", ["/out"]), is_ignored("a/b/x.pyc", ["*.pyc"])
    (True, False, True)
    """
    parts = path.split("/")
    prefixes = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for pattern in patterns:
        rooted = "/" in pattern.rstrip("/")
        bare = pattern.strip("/")
        candidates = prefixes if rooted else parts
        if any(fnmatch.fnmatchcase(candidate, bare) for candidate in candidates):
            return True
    return False


def _patterns(folder: Path) -> list[str]:
    lines: list[str] = []
    for name in IGNORE_FILES:
        file = folder / name
        if file.is_file():
            lines += file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith(("#", "!"))]
