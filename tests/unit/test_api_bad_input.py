"""Bad input: each is answered with a coded 4xx and the nearest legal value, or handled; never a 500, a hang, a leak.

The numbers are those of the table in docs/api.md.
"""

import errno
import gzip
import json
import re
import socket
import tracemalloc

import pytest

from api_farm import LIMIT_S, ApiFarm, error_of, png, wait_for
from sakuga.api import ApiSettings

POST = ("POST", "/v1/videos")
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
MB = 2**20


def part(name: str, value: str | bytes, extra: str = "") -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


BODIES = [
    (1, b"", JSON, 400, "E_BODY"),
    (1, b"", {}, 415, "E_MEDIA_TYPE"),
    (1, b"", FORM, 400, "E_RECIPE"),
    (2, b"[]", JSON, 400, "E_BODY"),
    (2, b"3", JSON, 400, "E_BODY"),
    (2, b"null", JSON, 400, "E_BODY"),
    (2, b"{", JSON, 400, "E_BODY"),
    (2, b"\xff\xfe", JSON, 400, "E_BODY"),
    (3, b'{"prompt":' * 100_000, JSON, 400, "E_BODY"),
    (3, b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", JSON, 400, "E_BODY"),
    (4, b'{"prompt": "x", "fps": NaN}', JSON, 400, "E_BODY"),
    (4, b'{"prompt": "x", "fps": -Infinity}', JSON, 400, "E_BODY"),
    (4, b'{"prompt": "x", "fps": 1e999}', JSON, 400, "E_BODY"),
    (4, b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", JSON, 400, "E_BODY"),
    (4, form(part("prompt", "x"), part("guidance_scale", "NaN")), FORM, 400, "E_RECIPE"),
    (5, b'{"prompt": "x", "prompt": "y"}', JSON, 400, "E_BODY"),
    (5, form(part("prompt", "x"), part("prompt", "y")), FORM, 400, "E_BODY"),
    (6, form(part("prompt", "x")), {"content-type": "multipart/form-data"}, 400, "E_BODY"),
    (6, b"prompt=x", FORM, 400, "E_BODY"),
    (6, part("prompt", "x"), FORM, 400, "E_RECIPE"),
    (7, form(*(part(f"a{number}", "x") for number in range(10_000))), FORM, 400, "E_BODY"),
    (7, form(*(part(f"a{number}", "x", '; filename="f"') for number in range(10_000))), FORM, 400, "E_BODY"),
    (8, form(part("prompt", "x", f"; a={'b' * MB}")), FORM, 400, "E_BODY"),
    (8, form(b"--b\r\n\r\nx\r\n"), FORM, 400, "E_BODY"),
    (11, gzip.compress(b"{}" * MB), JSON | {"content-encoding": "gzip"}, 415, "E_MEDIA_TYPE"),
    (12, b'{"prompt": "x"}', {"content-type": "text/plain"}, 415, "E_MEDIA_TYPE"),
    (12, b"<a/>", {"content-type": "text/xml; charset=nonsense"}, 415, "E_MEDIA_TYPE"),
    (17, b'{"prompt": "x"}', JSON | {"idempotency-key": ""}, 400, "E_INPUT"),
    (17, b'{"prompt": "x"}', JSON | {"idempotency-key": "a" * 10_000}, 400, "E_INPUT"),
    (17, b'{"prompt": "x"}', JSON | {"idempotency-key": "schlüssel".encode()}, 400, "E_INPUT"),
    (52, form(part("prompt", "x"), part("input_reference", "text", '; filename="a.png"')), FORM, 400, "E_IMAGE"),
    (53, form(part("prompt", "x"), *2 * [part("input_reference", png(), '; filename="a"')]), FORM, 400, "E_BODY"),
    (54, form(part("prompt", "x"), part("image_url", "data:,"), part("input_reference", png(), '; filename="a"')), FORM,
     400, "E_RECIPE"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "body", "headers", "status", "code"), BODIES, ids=[f"{row[0]}-{at}" for at, row in enumerate(BODIES)]
)
def test_bodies(api, tenant, number, body, headers, status, code):
    response = api.http(tenant).request(*POST, content=body, headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (status, code), response.text
    assert api.http(tenant).get("/v1/videos").json()["data"] == []


FIELDS = [
    (19, {"prompt": ""}, "E_PROMPT", "empty"),
    (19, {"prompt": " \n"}, "E_PROMPT", "empty"),
    (19, {"prompt": None}, "E_RECIPE", "prompt"),
    (20, {"prompt": "x" * 32_001}, "E_PROMPT", "32000"),
    (21, {"prompt": "a\x1b[31mb"}, "E_PROMPT", "U\\+001B"),
    (21, {"prompt": "a\x00b"}, "E_PROMPT", "U\\+0000"),
    (21, {"prompt": "\ud800"}, "E_PROMPT", "U\\+D800"),
    (25, {"prompt": 3}, "E_PROMPT", "text"),
    (25, {"prompt": ["x"]}, "E_PROMPT", "text"),
    (26, {"size": "1280X720"}, "E_RECIPE", "1280x720"),
    (26, {"size": "1280*720"}, "E_RECIPE", "WIDTHxHEIGHT"),
    (26, {"size": "0x0"}, "E_GEOMETRY", "16"),
    (26, {"size": "-16x16"}, "E_RECIPE", "WIDTHxHEIGHT"),
    (26, {"size": "1e3x720"}, "E_RECIPE", "WIDTHxHEIGHT"),
    (26, {"size": "99999x99999"}, "E_GEOMETRY", "4096"),
    (26, {"size": "1281x721"}, "E_GEOMETRY", "nearest: 1280x720"),
    (26, {"size": 16}, "E_RECIPE", "WIDTHxHEIGHT"),
    (26, {"size": "32x32", "width": 32}, "E_RECIPE", "one of them"),
    (27, {"seconds": "0"}, "E_RECIPE", "above 0"),
    (27, {"seconds": "-4"}, "E_RECIPE", "above 0"),
    (27, {"seconds": "1e9"}, "E_RECIPE", "above 0"),
    (27, {"seconds": "four"}, "E_RECIPE", "above 0"),
    (27, {"seconds": True}, "E_RECIPE", "above 0"),
    (27, {"seconds": "3000"}, "E_RECIPE", "at most 666"),
    (27, {"seconds": "4", "num_frames": 61}, "E_RECIPE", "one of them"),
    (28, {"num_frames": 80}, "E_GEOMETRY", "nearest: 81"),
    (28, {"num_frames": 0}, "E_GEOMETRY", "from 1"),
    (28, {"num_frames": 10**6}, "E_GEOMETRY", "10001"),
    (29, {"fps": 0}, "E_RECIPE", "from 1 to 120"),
    (29, {"fps": 1000}, "E_RECIPE", "from 1 to 120"),
    (29, {"fps": "NaN"}, "E_RECIPE", "from 1 to 120"),
    (30, {"num_inference_steps": 0}, "E_RECIPE", "from 1 to 1000"),
    (30, {"num_inference_steps": 10**6}, "E_RECIPE", "from 1 to 1000"),
    (30, {"num_inference_steps": 4.5}, "E_RECIPE", "whole number"),
    (31, {"guidance_scale": -1}, "E_RECIPE", "from 0"),
    (31, {"guidance_scale": 1e9}, "E_RECIPE", "100"),
    (32, {"seed": -1}, "E_RECIPE", "from 0"),
    (32, {"seed": 2**63}, "E_RECIPE", "from 0"),
    (32, {"seed": 2**64}, "E_RECIPE", "from 0"),
    (32, {"seed": 1.5}, "E_RECIPE", "whole number"),
    (32, {"seed": "abc"}, "E_RECIPE", "whole number"),
    (33, {"model": "wan-mino"}, "E_MODEL", "wan-mini"),
    (33, {"model": ""}, "E_MODEL", "wan-mini"),
    (33, {"model": "../../etc/passwd"}, "E_MODEL", "wan-mini"),
    (33, {"model": ["wan-mini"]}, "E_MODEL", "wan-mini"),
    (34, {"num_inferense_steps": 4}, "E_RECIPE", "did you mean 'num_inference_steps'"),
    (34, {"profile": "drafd"}, "E_PROFILE", "did you mean 'draft'"),
    (34, {"priority": "interactiv"}, "E_RECIPE", "did you mean 'interactive'"),
    (34, {"weights_sha256": "0" * 64}, "E_RECIPE", "other weights"),
    (36, {"ulysses": 3}, "E_RECIPE", "no such field"),
    (36, {"guidance_scale_2": 3}, "E_RECIPE", "two experts"),
    (37, {"flow_shift": 0}, "E_RECIPE", "0.01"),
    (38, {"n": 0}, "E_RECIPE", "no such field"),
    (38, {"n": 1000}, "E_RECIPE", "no such field"),
    (51, {"input_image": "../../x.png"}, "E_RECIPE", "no path is read"),
    (51, {"control_video": "/etc/passwd"}, "E_RECIPE", "no path is read"),
    (51, {"input_reference": {"file_id": "file-1"}}, "E_INPUT", "file_id"),
    (51, {"input_reference": {"image_url": "file:/etc/passwd"}}, "E_RECIPE", "no path is read"),
    (51, {"input_image": "data:image/png;base64,@@@@"}, "E_INPUT", "damaged"),
    (51, {"input_image": "data:image/png,abc"}, "E_INPUT", "base64"),
    (51, {"input_image": "data:image/png;base64,"}, "E_IMAGE", "input_image"),
    (60, {"webhook_url": "http://169.254.169.254/"}, "E_URL", "https"),
    (60, {"webhook_url": "https://127.0.0.1/"}, "E_URL", "public"),
    (60, {"webhook_url": "x" * 3000}, "E_RECIPE", "webhook_url"),
    (60, {"webhook_url": "https://a.example/\r\nX: y"}, "E_RECIPE", "webhook_url"),
    (64, {"loras": ["fairy:-10"]}, "E_RECIPE", "from -4"),
    (64, {"loras": ["fairy:nan"]}, "E_RECIPE", "from -4"),
    (64, {"loras": ["fairy"] * 100}, "E_RECIPE", "at most 16"),
    (64, {"loras": ["fairy", "fairy"]}, "E_RECIPE", "twice"),
    (65, {"loras": ["../../secret"]}, "E_RECIPE", "path"),
    (65, {"loras": [{"path": "/etc/passwd"}]}, "E_RECIPE", "path"),
    (65, {"loras": ["secret"]}, "E_RECIPE", "fairy"),
    (65, {"loras": ["lora_unknown"]}, "E_NOT_FOUND", "no LoRA"),
    (0, {"deadline_s": -1}, "E_RECIPE", "30 days"),
    (0, {"extra_params": "[1]"}, "E_BODY", "object"),
    (0, {"extra_params": '{"fps": 8}', "fps": 9}, "E_RECIPE", "give it once"),
    (0, {"step_cache": "forecast"}, "E_RECIPE", "KIND:THRESHOLD"),
    (0, {"tiling": {"tile_height": 0}}, "E_RECIPE", "tiling"),
    (0, {"end_image": "data:image/png;base64,aGVsbG8="}, "E_IMAGE", "end_image"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "fields", "code", "words"), FIELDS, ids=[f"{row[0]}-{at}" for at, row in enumerate(FIELDS)]
)
def test_fields(api, tenant, number, fields, code, words):
    """In JSON, and what a form can hold in a form too."""
    http = api.http(tenant)
    body = {"prompt": "x"} | fields
    answers = [http.post("/v1/videos", content=json.dumps(body), headers=JSON)]
    if all(isinstance(value, (str, int, float)) and not isinstance(value, bool) for value in fields.values()):
        sent = {name: str(value) for name, value in body.items() if "\ud800" not in str(value)}
        if len(sent) == len(body) and fields.get("prompt") != 3:
            answers.append(http.post("/v1/videos", files={name: (None, value) for name, value in sent.items()}))
    for response in answers:
        error = error_of(response)
        assert error["code"] == code, response.text
        assert response.status_code == (404 if code == "E_NOT_FOUND" else 400)
        assert re.search(words, error["message"]), error["message"]
        assert "/tmp" not in error["message"] and str(api.scratch) not in error["message"]
    assert http.get("/v1/videos").json()["data"] == []


TAKEN = [
    (21, {"prompt": "two\nlines\tand a tab"}),
    (22, {"prompt": "<script>alert(1)</script> {{7*7}} =cmd|' /C calc'!A0"}),
    (23, {"prompt": "x" * 10_000}),
    (24, {"prompt": "x", "negative_prompt": "y", "guidance_scale": 1}),
    (26, {"prompt": "x", "size": "16x16"}),
    (27, {"prompt": "x", "seconds": "5.5"}),
    (27, {"prompt": "x", "seconds": 4}),
    (30, {"prompt": "x", "num_inference_steps": 1}),
    (32, {"prompt": "x", "seed": 2**63 - 1}),
]


@pytest.mark.parametrize(("number", "fields"), TAKEN, ids=[f"{row[0]}-{at}" for at, row in enumerate(TAKEN)])
def test_what_looks_odd_and_is_taken(api, tenant, number, fields):
    response = api.http(tenant).post("/v1/videos", json={"size": "32x32"} | fields)
    assert response.status_code == 200, response.text
    assert response.json()["prompt"] == fields["prompt"]
    if number in (23, 24):
        assert "no effect" in " ".join(response.json()["notes"])


QUERIES = [
    (14, "/v1/videos?limit=-1", 400, "limit"),
    (14, "/v1/videos?limit=101", 400, "limit"),
    (14, "/v1/videos?limit=abc", 400, "limit"),
    (14, "/v1/videos?limt=3", 400, "limt"),
    (14, "/v1/videos?order=up", 400, "order"),
    (15, "/v1/videos?after=video_unknown", 404, "video_unknown"),
    (15, "/v1/videos?after=%00", 400, "after"),
    (16, "/v1/videos/video_x/content?variant=../../etc/passwd", 400, "variant"),
    (16, "/v1/videos/..%2F..%2Fetc%2Fpasswd/content", 404, None),
    (16, "/v1/videos/%00", 404, None),
    (16, "/v1/videos/" + "a" * 5000, 404, None),
    (16, "/v1/videos/video_x/events", 404, None),
    (16, "/v1/nothing", 404, None),
    (14, "/v1/loras?after=%27", 400, "after"),
    (14, "/v1/batches?limit=1e3", 400, "limit"),
    (14, "/v1/batches?order=asc", 400, "order"),
    (14, "/v1/webhooks/deliveries?only_failed=perhaps", 400, "only_failed"),
]


@pytest.mark.parametrize(
    ("number", "path", "status", "word"), QUERIES, ids=[f"{row[0]}-{row[1][:40]}" for row in QUERIES]
)
def test_paths_and_queries(api, tenant, number, path, status, word):
    response = api.http(tenant).get(path)
    error = error_of(response)
    assert response.status_code == status
    assert error["code"] == ("E_NOT_FOUND" if status == 404 else "E_INPUT")
    assert word is None or word in error["message"]


def test_methods_that_a_path_does_not_have(api, tenant):
    """Number 13, on every route of the document."""
    http = api.http(tenant)
    paths = http.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        filled = path.replace("{", "").replace("}", "")
        for method in {"HEAD", "OPTIONS", "PUT", "PATCH", "TRACE"} - {name.upper() for name in methods}:
            response = http.request(method, filled)
            assert response.status_code == 405, (method, path)
            allowed = set(response.headers["allow"].split(", "))
            assert {name.upper() for name in methods} <= allowed and method not in allowed, (method, path)
            if method != "HEAD":
                told = response.json()["error"] if path.startswith("/v1") else response.json()
                assert told["code"] == "E_METHOD"


def test_headers_beyond_the_limit(api, tenant):
    response = api.http(tenant).get("/v1/videos", headers={"x-long": "a" * 40_000})
    assert (response.status_code, error_of(response)["code"]) == (431, "E_TOO_LARGE")


def raw(farm: ApiFarm, tenant: str, headers: str, body: bytes) -> str:
    """The answer to what no client library would send."""
    host, port = farm.url.removeprefix("http://").split(":")
    head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {farm.key(tenant)}\r\n{headers}\r\n"
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode() + body)
        return connection.recv(65536).decode()


def test_a_body_beyond_the_limit_is_not_kept(api, tenant):
    """Number 10: two gigabytes, as the header says, or a quarter of one in chunks of which nobody knows how many."""
    announced = "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 2147483648\r\n"
    answer = raw(api, tenant, announced, b"")
    assert answer.startswith("HTTP/1.1 413") and "E_TOO_LARGE" in answer
    chunks = [part("prompt", "x"), part("input_reference", b"", '; filename="a"')[:-2], *[b"\0" * MB] * 256]
    tracemalloc.start()
    response = api.http(tenant).post("/v1/videos", content=iter(chunks), headers=FORM)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (response.status_code, error_of(response)["code"]) == (413, "E_TOO_LARGE")
    assert peak_bytes < 3 * api.deps.settings.max_body_bytes


@pytest.mark.parametrize("length", ["100", "3"])
def test_a_content_length_that_lies(tmp_path, tenant, length):
    """Number 9: too long, the client falls silent; too short, the rest is no request."""
    farm = ApiFarm(tmp_path, ApiSettings(body_idle_s=0.3))
    try:
        headers = f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
        answer = raw(farm, tenant, headers, b'{"prompt": "x"}')
        assert answer.startswith("HTTP/1.1 408" if length == "100" else "HTTP/1.1 400")
        assert length == "3" or "E_SLOW_BODY" in answer
    finally:
        farm.close()


def test_what_no_lane_has_the_memory_for(tmp_path, tenant):
    """Number 35: with what would fit."""
    farm = ApiFarm(tmp_path, memory_bytes=100 * 10**6)
    try:
        response = farm.http(tenant).post("/v1/videos", json={"prompt": "x", "size": "1280x720"})
        assert (response.status_code, error_of(response)["code"]) == (400, "E_MEMORY")
        assert "fits" in error_of(response)["message"]
    finally:
        farm.close()


def test_a_full_disk_is_not_the_clients_fault(api, tenant, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sakuga.api.body._save", full)
    response = api.http(tenant).post("/v1/videos", files={"prompt": (None, "x"), "input_reference": ("a", png())})
    assert (response.status_code, error_of(response)["code"]) == (503, "E_DISK_FULL")


def test_a_bug_is_told_by_its_request_id_alone(api, tenant, monkeypatch, caplog):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(api.stores.jobs, "page", broken)
    response = api.http(tenant).get("/v1/videos")
    assert (response.status_code, error_of(response)["code"]) == (500, "E_INTERNAL")
    assert "secret" not in response.text and response.headers["x-request-id"].startswith("req_")
    assert "ZeroDivisionError" in caplog.text


def test_a_client_that_leaves_in_an_upload_leaves_nothing(api, tenant, caplog):
    host, port = api.url.removeprefix("http://").split(":")
    head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key(tenant)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode() + part("prompt", "x" * 1000))
    wait_for(lambda: not list(api.scratch.glob("request-*")), "the folder to go")
    assert api.http(tenant).get("/v1/videos").json()["data"] == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("name", ["../../x.png", "con.png", "a" * 4000, "a\\x00b.png", "a%0d%0ab.png"])
def test_names_of_uploaded_files_do_not_matter(api, tenant, name):
    """Number 51, and 52: neither does their type."""
    files = {"input_reference": (name, png(), "video/mp4"), "prompt": (None, "x"), "size": (None, "32x32")}
    response = api.http(tenant).post("/v1/videos", files=files)
    assert response.status_code == 200 or error_of(response)["code"] == "E_BODY", response.text
    names = api.objects.names(tenant) if response.status_code == 200 else []
    assert all(each.endswith("/input_image.png") for each in names)
