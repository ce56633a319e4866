"""An S3 prefix as a storage: listed over the network, downloaded once into a cache folder.

A cached file is used again when its size and ETag are those that the server lists. Works with every server that
speaks S3 (`endpoint_url`). Credentials come the way boto3 always finds them.
"""

import contextlib
import errno
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from sakuga.errors import DiskFullError, InputError, OutputError, SakugaError, StorageError
from sakuga.storage.base import StoredFile, matches

logger = logging.getLogger(__name__)


class Paginator(Protocol):
    """What a boto3 paginator does here: pages of a listing."""

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterable[dict]: ...  # boto3's names


class S3Client(Protocol):
    """The part of a boto3 client that is used here."""

    def get_paginator(self, operation_name: str) -> Paginator: ...
    def download_file(self, bucket: str, key: str, filename: str) -> None: ...


class S3Prefix:
    """Objects below `s3://bucket/prefix`, kept after download in `cache_dir/bucket/key`."""

    def __init__(
        self, address: str, *, cache_dir: Path, endpoint_url: str | None = None, client: S3Client | None = None
    ) -> None:
        """`client` is for tests; without one a boto3 client is made at the first use."""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        if not bucket:
            raise InputError(f"'{address}' names no bucket; write s3://bucket/prefix")
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.cache_dir = cache_dir
        self.endpoint_url = endpoint_url
        self._client = client
        self._etags: dict[str, str] = {}

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def find(self, pattern: str) -> tuple[StoredFile, ...]:
        # Only what stands before the first wildcard narrows the listing; a bucket may hold millions of keys.
        literal = pattern.split("*", 1)[0]
        found = []
        for key, size_bytes, etag in self._listed(self._key(literal)):
            name = key[len(self.prefix) :].lstrip("/")
            if matches(name, pattern):
                self._etags[name] = etag
                found.append(StoredFile(name=name, size_bytes=size_bytes))
        return tuple(sorted(found, key=lambda file: file.name))

    def fetch(self, file: StoredFile) -> Path:
        path = self.cache_dir / self.bucket / self._key(file.name)
        note = path.with_name(path.name + ".etag")
        etag = self._etags.get(file.name, "")
        with self._cache_access(file):
            if path.is_file() and path.stat().st_size == file.size_bytes and _read(note) == etag:
                return path
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        logger.info("download %s (%d bytes)", self._url(file.name), file.size_bytes)
        with self._cache_access(file):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._download(file, part)
                # The note goes last: a crash in between costs a second download, never a stale file.
                note.unlink(missing_ok=True)
                os.replace(part, path)
                note.write_text(etag)
            finally:
                part.unlink(missing_ok=True)
        return path

    @contextlib.contextmanager
    def _cache_access(self, file: StoredFile) -> Iterator[None]:
        """What the cache folder's disk says, as one of our errors."""
        try:
            yield
        except SakugaError:  # StorageError is an OSError too
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"no space left in {self.cache_dir} for {self._url(file.name)} ({file.size_bytes} bytes); "
                    "free some, or set SAKUGA_CACHE to another folder"
                ) from error
            raise OutputError(
                f"the cache folder {self.cache_dir} cannot be used ({error.strerror or error}); "
                "set SAKUGA_CACHE to one that can"
            ) from error

    def _download(self, file: StoredFile, part: Path) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._boto().download_file(self.bucket, self._key(file.name), str(part))
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise StorageError(f"{self._url(file.name)} cannot be downloaded: {error}") from error
        got = part.stat().st_size
        if got != file.size_bytes:
            raise StorageError(f"{self._url(file.name)} came with {got} of {file.size_bytes} bytes; try again")

    def _listed(self, key_prefix: str) -> Iterator[tuple[str, int, str]]:
        """(key, size in bytes, ETag) of every object whose key starts so."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            pages = self._boto().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=key_prefix)
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield entry["Key"], entry["Size"], entry.get("ETag", "")
        except (BotoCoreError, ClientError) as error:
            raise StorageError(
                f"s3://{self.bucket}/{key_prefix} cannot be listed: {error}; "
                "check the address, the endpoint and the credentials"
            ) from error

    def _boto(self) -> S3Client:
        if self._client is None:
            import boto3

            self._client = boto3.client("s3", endpoint_url=self.endpoint_url)
        return self._client

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _url(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._key(name)}"


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None
