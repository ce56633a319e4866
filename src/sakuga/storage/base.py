"""The storage interface, and how a pattern meets a name."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a storage."""

    name: str
    """Relative to the storage's root, with forward slashes."""
    size_bytes: int


class Storage(Protocol):
    """A tree of named files that can be searched and brought onto this machine."""

    @property
    def address(self) -> str:
        """What a user typed to name it; used in messages."""
        ...

    def find(self, pattern: str) -> tuple[StoredFile, ...]:
        """Files whose whole relative name matches, sorted by name; `*` stops at a slash."""
        ...

    def fetch(self, file: StoredFile) -> Path:
        """The file as a local path, whole: a download that breaks off leaves nothing behind.

        Raises StorageError when the file cannot be had or comes with another size than announced.
        """
        ...


def matches(name: str, pattern: str) -> bool:
    """Whether the whole of `name` fits `pattern`, part by part.

    >>> matches("a/b-1.bin", "a/b*.bin"), matches("x/a/b.bin", "a/b*.bin"), matches("a/b/c.bin", "a/*.bin")
    (True, False, False)
    """
    path = PurePosixPath(name)
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)
