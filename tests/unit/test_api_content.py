"""Files of a video: variants, ranges, redirects, the cut."""

import pytest

from api_farm import error_of
from sakuga.media import read_video

FIELDS = {"prompt": "x", "size": "32x32", "num_inference_steps": 2}


@pytest.fixture
def video(api, tenant):
    """One of five seconds, completed: 77 frames of which 75 are shown."""
    created = api.http(tenant).post("/v1/videos", json=FIELDS | {"seconds": "5"}).json()
    api.render()
    return created["id"]


@pytest.mark.parametrize(
    ("variant", "kind", "start"),
    [
        (None, "video/mp4", b"ftyp"),
        ("video", "video/mp4", b"ftyp"),
        ("thumbnail", "image/webp", b"WEBP"),
        ("spritesheet", "image/webp", b"WEBP"),
        ("receipt", "application/json", b"seconds"),
    ],
)
def test_every_variant(api, tenant, video, variant, kind, start):
    params = {} if variant is None else {"variant": variant}
    response = api.http(tenant).get(
        f"/v1/videos/{video}/content", params=params, headers={"accept": "application/binary"}
    )
    assert (response.status_code, response.headers["content-type"]) == (200, kind)
    assert start in response.content[:16]
    assert response.headers["content-disposition"].startswith(f'attachment; filename="{video}.')
    assert response.headers["x-content-type-options"] == "nosniff"


def test_five_seconds_are_five_seconds(api, tenant, video, tmp_path):
    (tmp_path / "a.mp4").write_bytes(api.http(tenant).get(f"/v1/videos/{video}/content").content)
    assert len(read_video(tmp_path / "a.mp4")) == 75


def test_frames_that_were_asked_for_are_all_there(api, tenant, tmp_path):
    created = api.http(tenant).post("/v1/videos", json=FIELDS | {"num_frames": 77}).json()
    api.render()
    (tmp_path / "a.mp4").write_bytes(api.http(tenant).get(f"/v1/videos/{created['id']}/content").content)
    assert len(read_video(tmp_path / "a.mp4")) == 77


def test_ranges_with_the_same_tag(api, tenant, video):
    http, path = api.http(tenant), f"/v1/videos/{video}/content"
    whole = http.get(path)
    part = http.get(path, headers={"range": "bytes=4-7", "if-range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert part.headers["etag"] == whole.headers["etag"]
    assert http.get(path, headers={"range": "bytes=99999999-"}).status_code == 416


def test_nothing_before_it_is_done_and_nothing_of_a_failure(api, tenant):
    http = api.http(tenant)
    video = http.post("/v1/videos", json=FIELDS).json()["id"]
    for state in ("queued", "in_progress", "failed"):
        response = http.get(f"/v1/videos/{video}/content")
        assert response.status_code == 404
        assert state in error_of(response)["message"]
        if state == "queued":
            claim = api.claim()
        else:
            http.post(f"/v1/videos/{video}/cancel")
    api.stores.renders.released(claim)


def test_a_preview_while_it_is_made(api, tenant, tmp_path):
    http = api.http(tenant)
    video = http.post("/v1/videos", json=FIELDS).json()["id"]
    claim, path = api.claim(), f"/v1/videos/{video}/content?variant=preview"
    assert error_of(http.get(path))["code"] == "E_NOT_FOUND"
    (tmp_path / "preview").write_bytes(b"RIFF....WEBP")
    (tmp_path / "older").write_bytes(b"RIFF....OLD.")
    api.objects.put(f"{claim.passing}/preview-15.webp", tmp_path / "preview")
    api.objects.put(f"{claim.passing}/preview-9.webp", tmp_path / "older")
    assert http.get(path).content == b"RIFF....WEBP"
    api.publish(claim)


def test_a_redirect_where_storage_can_be_read_by_address(api, tenant, monkeypatch):
    monkeypatch.setattr(api.objects, "url", lambda name, seconds=900: f"https://storage.example/{name}?signed")
    http = api.http(tenant)
    whole = http.post("/v1/videos", json=FIELDS | {"num_frames": 5}).json()["id"]
    claim = api.render()
    response = http.get(f"/v1/videos/{whole}/content")
    assert (response.status_code, response.headers["location"]) == (
        302, f"https://storage.example/{claim.prefix}/video/video.mp4?signed",
    )  # fmt: skip
    cut = http.post("/v1/videos", json=FIELDS | {"seconds": "1"}).json()["id"]
    api.render()
    assert http.get(f"/v1/videos/{cut}/content").status_code == 200, "storage has it uncut"
    assert http.get(f"/v1/videos/{cut}/content?variant=thumbnail").status_code == 302


def test_a_file_that_storage_lost_is_no_bug(api, tenant, video):
    api.objects.delete(tenant)
    response = api.http(tenant).get(f"/v1/videos/{video}/content")
    assert (response.status_code, error_of(response)["code"]) == (404, "E_NOT_FOUND")
