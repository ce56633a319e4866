"""Where weights come from: a local folder or an S3 prefix, behind one small interface.

It knows names, sizes and bytes; it knows nothing of models.     Run: pytest tests/unit/test_storage.py
"""

from pathlib import Path

from sakuga.errors import InputError
from sakuga.storage.base import Storage, StoredFile
from sakuga.storage.local import LocalFolder
from sakuga.storage.s3 import S3Prefix

__all__ = ["LocalFolder", "S3Prefix", "Storage", "StoredFile", "open_storage"]


def open_storage(address: str | Path, *, cache_dir: Path, endpoint_url: str | None = None) -> Storage:
    """`s3://bucket/prefix` or a local folder.

    `cache_dir` and `endpoint_url` matter to S3 only: downloads are kept below the first, and the second names a
    server other than Amazon's. Raises InputError for another scheme.
    """
    text = str(address)
    if text.startswith("s3://"):
        return S3Prefix(text, cache_dir=cache_dir, endpoint_url=endpoint_url)
    if "://" in text:
        scheme = text.split("://", 1)[0]
        raise InputError(f"'{scheme}://' is not a storage that can be read; give a local folder or s3://bucket/prefix")
    return LocalFolder(Path(text))
