"""The contract of object stores, on a folder and on a server that speaks S3."""

import contextlib
import hashlib
import os
import secrets
import socket
import subprocess
import sys
import time

import boto3
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from moto.server import ThreadedMotoServer

from sakuga.errors import ConflictError, DiskFullError, InputError, NotFoundError, StorageError
from sakuga.storage.objects import MAX_TRIES, FolderObjects, S3Objects, check_name, client_config, open_objects

DATA = b"a video" * 1000


@pytest.fixture(scope="session")
def moto_url():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def client_of(url: str):
    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret",
        config=client_config(),
    )  # fmt: skip


@pytest.fixture(scope="session")
def nanio_url(tmp_path_factory):
    """Checks signatures, which moto does not; ignores conditional writes, which moto heeds."""
    pytest.importorskip("nanio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "nanio",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    command += ["--data-dir", str(tmp_path_factory.mktemp("nanio"))]
    keys = {"NANIO_ACCESS_KEY": "key", "NANIO_SECRET_KEY": "secret"}
    server = subprocess.Popen(command, env=os.environ | keys)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(10)


@pytest.fixture(params=["folder", "moto", "nanio"])
def objects(request, tmp_path):
    if request.param == "folder":
        return FolderObjects(tmp_path / "objects")
    client = client_of(request.getfixturevalue(f"{request.param}_url"))
    bucket = f"bucket-{os.urandom(6).hex()}"
    client.create_bucket(Bucket=bucket)
    return S3Objects(client, bucket, "some/prefix", part_bytes=5 * 2**20)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(DATA)
    return path


def test_what_was_put_is_got(objects, file, tmp_path):
    stored = objects.put("app/job/1/video.mp4", file)
    assert (stored.num_bytes, stored.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    objects.get("app/job/1/video.mp4", tmp_path / "back.mp4")
    assert (tmp_path / "back.mp4").read_bytes() == DATA
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_same_bytes_again_are_a_success_and_others_an_error(objects, file, tmp_path):
    stored = objects.put("a/b", file)
    assert objects.put("a/b", file) == stored
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    with pytest.raises(ConflictError, match="written once"):
        objects.put("a/b", other)
    objects.get("a/b", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == DATA


def test_names_and_deletion_below_a_prefix(objects, file):
    for name in ("t/job1/video.mp4", "t/job1/receipt.json", "t/job10/video.mp4", "u/job1/video.mp4"):
        objects.put(name, file)
    assert objects.names("t/job1") == ["t/job1/receipt.json", "t/job1/video.mp4"]
    assert objects.delete("t/job1") == 2
    assert objects.delete("t/job1") == 0, "nothing there is no error"
    assert objects.names("t") == ["t/job10/video.mp4"]
    assert objects.names("u/job1/video.mp4") == ["u/job1/video.mp4"]


def test_what_is_not_there(objects, tmp_path):
    with pytest.raises(NotFoundError):
        objects.get("a/b", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert objects.names("a") == []


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a\\b", "a\0b", "./a"])
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(InputError):
        check_name(name)


def test_a_large_object_goes_in_parts(moto_url, tmp_path):
    client = client_of(moto_url)
    client.create_bucket(Bucket="parts")
    path = tmp_path / "large"
    path.write_bytes(os.urandom(11 * 2**20))
    objects = S3Objects(client, "parts", part_bytes=5 * 2**20)
    objects.put("large", path)
    assert client.head_object(Bucket="parts", Key="large")["ETag"].endswith('-3"')
    path.write_bytes(os.urandom(11 * 2**20))
    with pytest.raises(ConflictError):
        objects.put("large", path)
    assert client.list_multipart_uploads(Bucket="parts").get("Uploads", []) == [], "nothing is left unfinished"


def test_an_address_for_a_while(objects, file):
    objects.put("a/b", file)
    address = objects.url("a/b", 60)
    assert (
        address is None if isinstance(objects, FolderObjects) else "X-Amz-Expires=60" in address or "Expires" in address
    )


def test_a_full_disk_leaves_nothing_behind(tmp_path, file, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sakuga.storage.objects.sync_file", full)
    with pytest.raises(DiskFullError):
        FolderObjects(tmp_path / "objects").put("a/b", file)
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


def test_a_server_that_is_not_there(file):
    from botocore.config import Config

    client = boto3.client(
        "s3", endpoint_url="http://127.0.0.1:9", region_name="us-east-1", aws_access_key_id="k",
        aws_secret_access_key="s", config=Config(retries={"max_attempts": 0}, connect_timeout=1),
    )  # fmt: skip
    with pytest.raises(StorageError, match="check the endpoint"):
        S3Objects(client, "bucket").put("a", file)


class Troubled:
    """A client with some calls that go wrong before they do anything."""

    def __init__(self, client, call: str, errors: list[Exception], after: int = 0) -> None:
        self._client, self._call, self._errors, self._after = client, call, errors, after

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if name != self._call:
            return method

        def troubled(**given):
            self._after -= 1
            if self._after < 0 and self._errors:
                raise self._errors.pop(0)
            return method(**given)

        return troubled


def answer(status: int, code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


CUT = ConnectionClosedError(endpoint_url="https://s3.example")


@pytest.fixture
def bucket(moto_url, monkeypatch):
    monkeypatch.setattr("sakuga.storage.objects.time.sleep", lambda seconds: None)
    client = client_of(moto_url)
    name = f"troubled-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=name)
    return client, name


@pytest.mark.parametrize(
    "error", [answer(500, "InternalError"), answer(503, "SlowDown"), answer(409, "ConditionalRequestConflict"), CUT]
)
def test_a_server_that_errs_is_asked_again_but_not_for_ever(bucket, file, error):
    client, name = bucket
    S3Objects(Troubled(client, "put_object", [error] * (MAX_TRIES - 1)), name).put("a", file)
    with pytest.raises(StorageError):
        S3Objects(Troubled(client, "put_object", [error] * MAX_TRIES), name).put("b", file)
    assert S3Objects(client, name).names("b") == []


def test_somebody_else_was_faster(bucket, file, tmp_path):
    """412 between the look and the write: with the same bytes a success, with others an error."""
    client, name = bucket
    taken = [answer(412, "PreconditionFailed")]
    other = tmp_path / "other"
    other.write_bytes(b"other bytes")

    class Faster(Troubled):
        def put_object(self, **given):
            self._client.put_object(Bucket=given["Bucket"], Key=given["Key"], Body=next(theirs).read_bytes())
            raise taken[0]

    theirs = iter([file, other])
    objects = S3Objects(Faster(client, "", []), name)
    assert objects.put("a", file).num_bytes == len(DATA)
    with pytest.raises(ConflictError):
        objects.put("b", file)


def test_an_upload_that_is_cut_starts_over_and_leaves_no_parts(bucket, tmp_path):
    client, name = bucket
    path = tmp_path / "large"
    path.write_bytes(os.urandom(6 * 2**20))
    S3Objects(Troubled(client, "upload_part", [CUT], after=1), name, part_bytes=5 * 2**20).put("a", path)
    got = tmp_path / "got"
    S3Objects(client, name).get("a", got)
    assert got.read_bytes() == path.read_bytes()
    with pytest.raises(StorageError):
        S3Objects(Troubled(client, "upload_part", [CUT] * MAX_TRIES), name, part_bytes=5 * 2**20).put("b", path)
    assert client.list_multipart_uploads(Bucket=name).get("Uploads", []) == []
    assert S3Objects(client, name).names("b") == []


def test_a_wrong_secret_is_told_and_leaves_nothing(nanio_url, file):
    right = client_of(nanio_url)
    right.create_bucket(Bucket="locked")
    wrong = boto3.client(
        "s3", endpoint_url=nanio_url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="other"
    )
    with pytest.raises(StorageError, match="check credentials and rights"):
        S3Objects(wrong, "locked").put("a", file)
    assert S3Objects(right, "locked").names("a") == []


def test_an_address_opens_the_object_and_no_other(nanio_url, file):
    import urllib.error
    import urllib.request

    client = client_of(nanio_url)
    client.create_bucket(Bucket="signed")
    objects = S3Objects(client, "signed")
    objects.put("a/b", file)
    address = objects.url("a/b")
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.read() == DATA
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(address.replace("a/b", "a/c"), timeout=10)


def test_a_place_for_results_by_its_address(tmp_path, monkeypatch):
    assert isinstance(open_objects(tmp_path), FolderObjects)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    found = open_objects("s3://bucket/some/prefix", endpoint_url="http://127.0.0.1:9")
    assert isinstance(found, S3Objects) and (found.bucket, found.prefix) == ("bucket", "some/prefix")
    for wrong in ("s3://", "gs://bucket", "https://host/x"):
        with pytest.raises(InputError):
            open_objects(wrong)


def test_a_full_disk_here_is_not_the_servers_fault(moto_url, file, tmp_path, monkeypatch):
    client = client_of(moto_url)
    client.create_bucket(Bucket="full")
    objects = S3Objects(client, "full")
    objects.put("a", file)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sakuga.storage.objects.shutil.copyfileobj", full)
    with pytest.raises(DiskFullError):
        objects.get("a", tmp_path / "back")
    assert not list(tmp_path.glob(".back*")) and not (tmp_path / "back").exists()
