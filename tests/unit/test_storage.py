"""Storage against a folder and against a small server that speaks S3 over HTTP."""

import errno
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse
from xml.sax.saxutils import escape

import pytest

from sakuga.errors import DiskFullError, InputError, OutputError, StorageError
from sakuga.storage import LocalFolder, S3Prefix, StoredFile, open_storage


class BucketServer(ThreadingHTTPServer):
    """ListObjectsV2, HEAD and GET for objects kept in a dictionary of key -> bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), BucketHandler)
        self.objects: dict[str, bytes] = {}
        self.truncate = False
        self.gets = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class BucketHandler(BaseHTTPRequestHandler):
    server: BucketServer

    def log_message(self, *_args) -> None:
        pass

    def do_GET(self) -> None:
        url = urlparse(self.path)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        if not key:
            return self._list(parse_qs(url.query).get("prefix", [""])[0])
        if key not in self.server.objects:
            return self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        self.server.gets += 1
        body = self.server.objects[key]
        self._send(200, body[: len(body) // 2] if self.server.truncate else body)

    def do_HEAD(self) -> None:
        key = unquote(urlparse(self.path).path).lstrip("/").partition("/")[2]
        body = self.server.objects.get(key)
        self._send(404 if body is None else 200, body or b"", head=True)

    def _list(self, prefix: str) -> None:
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size><ETag>{hash(body)}</ETag></Contents>"
            for key, body in sorted(self.server.objects.items())
            if key.startswith(prefix)
        )
        self._send(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())

    def _send(self, status: int, body: bytes, *, head: bool = False) -> None:
        if head and self.server.truncate:
            body = body[: len(body) // 2]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", str(hash(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = BucketServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_local_folder_finds_whole_names_and_reads_in_place(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w-1.bin").write_bytes(b"12")
    (tmp_path / "a" / "w-2.bin").write_bytes(b"345")
    (tmp_path / "w-3.bin").write_bytes(b"6")
    storage = LocalFolder(tmp_path)
    found = storage.find("a/w*.bin")
    assert [(file.name, file.size_bytes) for file in found] == [("a/w-1.bin", 2), ("a/w-2.bin", 3)]
    assert storage.fetch(found[0]) == tmp_path / "a" / "w-1.bin"
    with pytest.raises(StorageError, match=r"nope\.bin"):
        storage.fetch(StoredFile(name="nope.bin", size_bytes=1))


def test_s3_downloads_once_and_again_when_the_object_changes(bucket, tmp_path):
    bucket.objects = {"models/wan/w-1.bin": b"one", "models/wan/deep/w-2.bin": b"two", "models/wanted.bin": b"no"}
    storage = S3Prefix("s3://shelf/models/wan/", cache_dir=tmp_path, endpoint_url=bucket.url)
    found = storage.find("*.bin")
    assert [file.name for file in found] == ["w-1.bin"]
    path = storage.fetch(found[0])
    assert path.read_bytes() == b"one"
    storage.fetch(found[0])
    assert bucket.gets == 1
    bucket.objects["models/wan/w-1.bin"] = b"ONE"  # same size, other content
    assert storage.fetch(storage.find("*.bin")[0]).read_bytes() == b"ONE"


def test_s3_short_download_leaves_nothing_behind(bucket, tmp_path):
    bucket.objects = {"w.bin": b"x" * 1000}
    bucket.truncate = True
    storage = S3Prefix("s3://shelf", cache_dir=tmp_path, endpoint_url=bucket.url)
    with pytest.raises(StorageError, match=r"s3://shelf/w\.bin came with 500 of 1000 bytes"):
        storage.fetch(storage.find("w.bin")[0])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_s3_missing_object_is_a_storage_error(bucket, tmp_path):
    storage = S3Prefix("s3://shelf/p", cache_dir=tmp_path, endpoint_url=bucket.url)
    with pytest.raises(StorageError, match=r"s3://shelf/p/gone\.bin cannot be downloaded"):
        storage.fetch(StoredFile(name="gone.bin", size_bytes=3))


def test_a_cache_folder_that_cannot_be_written_is_named(bucket, tmp_path):
    bucket.objects = {"w.bin": b"12"}
    blocked = tmp_path / "cache"
    blocked.write_bytes(b"")  # a file in its place: a permission would not stop root
    storage = S3Prefix("s3://shelf", cache_dir=blocked, endpoint_url=bucket.url)
    with pytest.raises(OutputError, match=r"cache folder .*cache cannot be used .*SAKUGA_CACHE"):
        storage.fetch(storage.find("w.bin")[0])


@pytest.mark.parametrize("full_at", ["write_text", "mkdir"])
def test_a_full_disk_of_the_cache_is_told_as_that(full_at, bucket, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    bucket.objects = {"w.bin": b"12"}
    storage = S3Prefix("s3://shelf", cache_dir=tmp_path, endpoint_url=bucket.url)
    found = storage.find("w.bin")[0]
    monkeypatch.setattr(f"pathlib.Path.{full_at}", full)
    with pytest.raises(DiskFullError, match=r"no space left in .* for s3://shelf/w\.bin \(2 bytes\)"):
        storage.fetch(found)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("address", ["gs://bucket/x", "https://host/x", "s3:///x"])
def test_addresses_that_cannot_be_read_are_refused(address, tmp_path):
    with pytest.raises(InputError):
        open_storage(address, cache_dir=tmp_path)
