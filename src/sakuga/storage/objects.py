"""Where results go: objects by name, written once and never overwritten, in a folder or on an S3 server.

A name belongs to one attempt of one render, so two writers never mean different things by it: what is there under the
same name with the same bytes is a success, with other bytes an error. Each write is read back and compared, as no
server is trusted to have checked it.     Run: pytest tests/unit/test_objects.py
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, TypeVar

from sakuga.errors import ConflictError, InputError, NotFoundError, StorageError, shown
from sakuga.media.files import atomic_file, output_error, sha256_of, sync_file
from sakuga.storage.s3 import Paginator

if TYPE_CHECKING:
    from botocore.config import Config

CHUNK_BYTES = 2**20
PART_BYTES = 64 * 2**20
"""Above it an upload goes in parts of that size."""
MAX_TRIES = 4
MAX_SIGNED_S = 900

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object that is there, whole."""

    name: str
    num_bytes: int
    sha256: str


class S3Client(Protocol):
    """The part of a boto3 client that is used here; its methods take boto3's own keyword arguments."""

    def put_object(self, **given: object) -> dict: ...
    def get_object(self, **given: object) -> dict: ...
    def delete_objects(self, **given: object) -> dict: ...
    def create_multipart_upload(self, **given: object) -> dict: ...
    def upload_part(self, **given: object) -> dict: ...
    def complete_multipart_upload(self, **given: object) -> dict: ...
    def abort_multipart_upload(self, **given: object) -> dict: ...
    def get_paginator(self, operation_name: str) -> Paginator: ...
    def generate_presigned_url(self, operation: str, *, Params: dict, ExpiresIn: int) -> str: ...  # boto3's names


class ObjectStore(Protocol):
    """Objects by name; names are relative paths with forward slashes."""

    def put(self, name: str, path: Path) -> StoredObject:
        """Store a file under a name that nothing else has.

        Raises ConflictError when something else is there, StorageError when it cannot be written, which leaves nothing.
        """
        ...

    def get(self, name: str, path: Path) -> None:
        """Bring an object to a local file, whole or not at all. Raises NotFoundError or StorageError."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Of all objects below a prefix, in order."""
        ...

    def delete(self, prefix: str) -> int:
        """Remove all objects below a prefix; how many there were. Nothing there is no error."""
        ...

    def url(self, name: str, seconds: int = MAX_SIGNED_S) -> str | None:
        """An address from which anybody can read the object for a while; None where there is no such thing."""
        ...


def open_objects(address: str | Path, *, endpoint_url: str | None = None) -> ObjectStore:
    """A folder, or `s3://bucket/prefix` with credentials as boto3 finds them. Raises InputError for another scheme."""
    text = str(address)
    if text.startswith("s3://"):
        import boto3

        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise InputError(f"{shown(text)} names no bucket; write s3://bucket/prefix")
        return S3Objects(boto3.client("s3", endpoint_url=endpoint_url, config=client_config()), bucket, prefix)
    if "://" in text:
        raise InputError(f"{shown(text)} is no place for results; give a local folder or s3://bucket/prefix")
    return FolderObjects(Path(text))


def client_config() -> Config:
    """Signatures of version 4, also for addresses; no checksums that some servers do not know."""
    from botocore.config import Config

    return Config(signature_version="s3v4", request_checksum_calculation="when_required")


def check_name(name: str) -> str:
    """Raises InputError for a name that could lead out of the store."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise InputError(f"{shown(name)} is no name of an object; write parts with slashes between them")
    return name


class FolderObjects:
    """Files below a folder: written beside their place, flushed to disk, then linked into it if nothing is there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, path: Path) -> StoredObject:
        target, sha256 = self.root / check_name(name), sha256_of(path)
        stored = StoredObject(name=name, num_bytes=path.stat().st_size, sha256=sha256)
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary)
            sync_file(temporary)
            if sha256_of(temporary) != sha256:
                raise StorageError(f"{target} came out with other bytes than were written; check the disk")
            try:
                os.link(temporary, target)  # fails where a rename would overwrite
            except FileExistsError:
                self._check_same(target, sha256)
            sync_file(target.parent)
        except (ConflictError, StorageError):
            raise
        except OSError as error:
            raise output_error(target, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        return stored

    def get(self, name: str, path: Path) -> None:
        source = self.root / check_name(name)
        if not source.is_file():
            raise NotFoundError(f"there is no object {shown(name)}")
        with atomic_file(path) as temporary:
            shutil.copyfile(source, temporary)

    def names(self, prefix: str) -> list[str]:
        below = self.root / check_name(prefix)
        files = [below] if below.is_file() else [path for path in below.rglob("*") if path.is_file()]
        return sorted(path.relative_to(self.root).as_posix() for path in files if path.suffix != ".tmp")

    def delete(self, prefix: str) -> int:
        found = self.names(prefix)
        for name in found:
            (self.root / name).unlink(missing_ok=True)
        shutil.rmtree(self.root / prefix, ignore_errors=True)
        return len(found)

    def url(self, name: str, seconds: int = MAX_SIGNED_S) -> str | None:
        return None

    def _check_same(self, target: Path, sha256: str) -> None:
        if sha256_of(target) != sha256:
            raise ConflictError(f"{target} is there with other bytes; an object is written once")


class S3Objects:
    """Objects below `s3://bucket/prefix`, on any server that speaks S3."""

    def __init__(self, client: S3Client, bucket: str, prefix: str = "", *, part_bytes: int = PART_BYTES) -> None:
        self._client, self.bucket, self.prefix, self._part_bytes = client, bucket, prefix.strip("/"), part_bytes

    def put(self, name: str, path: Path) -> StoredObject:
        key, sha256 = self._key(name), sha256_of(path)
        stored = StoredObject(name=name, num_bytes=path.stat().st_size, sha256=sha256)
        if self._sha256(key) is None:  # some servers ignore the condition of the write
            _again(lambda: self._upload(key, path, sha256))
        there = self._sha256(key)
        if there != sha256:
            raise ConflictError(f"{self._address(key)} is there with other bytes; an object is written once")
        return stored

    def get(self, name: str, path: Path) -> None:
        key = self._key(name)
        with atomic_file(path) as temporary, _as_ours(self._address(key)):
            body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
            with temporary.open("wb") as file:
                shutil.copyfileobj(body, file, CHUNK_BYTES)

    def names(self, prefix: str) -> list[str]:
        start = self._key(prefix)
        with _as_ours(self._address(start)):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        own = [key for key in keys if key == start or key.startswith(f"{start}/")]
        return sorted(key[len(self.prefix) :].lstrip("/") for key in own)

    def delete(self, prefix: str) -> int:
        found = self.names(prefix)
        for first in range(0, len(found), 1000):
            batch = [{"Key": self._key(name)} for name in found[first : first + 1000]]
            with _as_ours(self._address(self._key(prefix))):
                self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
        return len(found)

    def url(self, name: str, seconds: int = MAX_SIGNED_S) -> str | None:
        given = {"Bucket": self.bucket, "Key": self._key(name)}
        return self._client.generate_presigned_url("get_object", Params=given, ExpiresIn=min(seconds, MAX_SIGNED_S))

    def _upload(self, key: str, path: Path, sha256: str) -> None:
        """Create-only; what another writer made meanwhile is looked at afterwards."""
        place = {"Bucket": self.bucket, "Key": key}
        if path.stat().st_size <= self._part_bytes:
            with path.open("rb") as file, _unless_there():
                self._client.put_object(**place, Body=file, IfNoneMatch="*", Metadata={"sha256": sha256})
            return
        upload = self._client.create_multipart_upload(**place, Metadata={"sha256": sha256})["UploadId"]
        try:
            parts = []
            with path.open("rb") as file:
                while chunk := file.read(self._part_bytes):
                    number = len(parts) + 1
                    sent = self._client.upload_part(**place, UploadId=upload, PartNumber=number, Body=chunk)
                    parts.append({"ETag": sent["ETag"], "PartNumber": number})
            with _unless_there():
                self._client.complete_multipart_upload(
                    **place, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
                )
                return
            self._abort(key, upload)
        except BaseException:
            self._abort(key, upload)
            raise

    def _abort(self, key: str, upload: str) -> None:
        """What is left of an upload; none is left where its completion was done and only the answer was lost."""
        from botocore.exceptions import BotoCoreError, ClientError

        with contextlib.suppress(BotoCoreError, ClientError):
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)

    def _sha256(self, key: str) -> str | None:
        """Of the bytes that the server gives back; None when there is nothing."""
        try:
            with _as_ours(self._address(key)):
                body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
                digest = hashlib.sha256()
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    digest.update(chunk)
                return digest.hexdigest()
        except NotFoundError:
            return None

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{check_name(name)}" if self.prefix else check_name(name)

    def _address(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"


def _again(work: Callable[[], Value]) -> Value:
    """Once more after a conflict between two writers, and when the server was not at home."""
    for tried in range(1, MAX_TRIES + 1):
        try:
            with _as_ours("the upload"):
                return work()
        except StorageError:
            if tried == MAX_TRIES:
                raise
            time.sleep(0.1 * 2**tried * (1 + secrets.randbelow(100) / 100))
    raise AssertionError("the last try returned or raised")


@contextmanager
def _unless_there() -> Iterator[None]:
    """Inside, 412 means that somebody else has written the object, which is looked at later."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if _status(error) != 412:
            raise


@contextmanager
def _as_ours(what: str) -> Iterator[None]:
    """What boto3 raises, as our errors."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        if _status(error) == 404:
            raise NotFoundError(f"there is no {what}") from error
        raise StorageError(f"{what} was refused by the server: {error}; check credentials and rights") from error
    except BotoCoreError as error:  # a plain OSError is of this machine's disk
        raise StorageError(f"{what} cannot be reached: {error}; check the endpoint") from error


def _status(error: Exception) -> int:
    response = getattr(error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
