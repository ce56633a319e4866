"""A folder on this machine as a storage: nothing is copied."""

from pathlib import Path

from sakuga.errors import StorageError
from sakuga.storage.base import StoredFile


class LocalFolder:
    """Files below one folder. Links are followed, as in a Hugging Face cache."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser()

    @property
    def address(self) -> str:
        return str(self.root)

    def find(self, pattern: str) -> tuple[StoredFile, ...]:
        found = (path for path in self.root.glob(pattern) if path.is_file())
        return tuple(
            StoredFile(name=path.relative_to(self.root).as_posix(), size_bytes=path.stat().st_size)
            for path in sorted(found)
        )

    def fetch(self, file: StoredFile) -> Path:
        path = self.root / file.name
        if not path.is_file():
            raise StorageError(f"{path} is gone; it was there a moment ago, so check what else writes to this folder")
        return path
