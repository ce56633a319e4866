"""Batches: good lines are taken, bad ones told."""

import pytest

from api_farm import ApiFarm, error_of, lines
from sakuga.api import ApiSettings
from sakuga.recipe import RenderRecipe

JSONL = {"content-type": "application/jsonl"}
SMALL = {"size": "32x32", "num_frames": 5, "num_inference_steps": 2}


def post(http, data: bytes, **headers: str):
    return http.post("/v1/batches", content=data, headers=JSONL | headers)


def test_good_lines_are_taken_and_bad_ones_told(api, tenant):
    http = api.http(tenant)
    data = lines({"prompt": "a", **SMALL}, {"prompt": ""}, 3, {"prompt": "b", "szie": "1x1"}) + b"\n\n{\n"
    data += lines({"prompt": "c", "priority": "interactive", **SMALL})
    told = post(http, data)
    assert told.status_code == 200, told.text
    batch = told.json()
    assert (batch["object"], batch["status"], batch["num_rows"], batch["counts"]["queued"]) == (
        "batch", "in_progress", 6, 2,
    )  # fmt: skip
    assert [(error["line"], error["code"]) for error in batch["errors"]] == [
        (2, "E_PROMPT"), (3, "E_BODY"), (4, "E_RECIPE"), (6, "E_BODY"),
    ]  # fmt: skip
    videos = http.get("/v1/videos", params={"order": "asc"}).json()["data"]
    assert {(video["prompt"], video["priority"], video["batch_id"]) for video in videos} == {
        ("a", "batch", batch["id"]), ("c", "batch", batch["id"]),
    }  # fmt: skip
    assert sorted(video["batch_line"] for video in videos) == [1, 7]
    http.post("/v1/videos", json={"prompt": "d", **SMALL})
    mine = http.get("/v1/videos", params={"batch_id": batch["id"]}).json()["data"]
    assert {video["id"] for video in mine} == {video["id"] for video in videos}
    for _ in range(3):
        api.render()
    done = http.get(f"/v1/batches/{batch['id']}").json()
    assert (done["status"], done["counts"]["completed"]) == ("completed", 2)
    assert [each["id"] for each in http.get("/v1/batches").json()["data"]] == [batch["id"]]


def test_as_a_file_of_a_form(api, tenant):
    http = api.http(tenant)
    told = http.post("/v1/batches", files={"file": ("rows.jsonl", lines({"prompt": "a", **SMALL}))})
    assert told.json()["counts"]["queued"] == 1
    assert error_of(http.post("/v1/batches", files={"file": ("a", b"{}"), "x": (None, "y")}))["code"] == "E_BODY"
    assert error_of(http.post("/v1/batches", json={"prompt": "a"}))["code"] == "E_BODY"
    assert http.post("/v1/batches", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


def test_cancel(api, tenant):
    http = api.http(tenant)
    batch = post(http, lines(*({"prompt": "a", "seed": seed, **SMALL} for seed in range(3)))).json()
    api.render()
    over = http.post(f"/v1/batches/{batch['id']}/cancel").json()
    assert (over["status"], over["counts"]["completed"], over["counts"]["cancelled"]) == ("completed", 1, 2)


def test_the_same_lines_once_more_are_the_same_renders(api, tenant):
    http, rows = api.http(tenant), lines({"prompt": "a", **SMALL}, {"prompt": "b", **SMALL})
    first, second = post(http, rows).json(), post(http, rows).json()
    assert first["id"] != second["id"]
    keys = {RenderRecipe.from_dict(api.render().recipe).render_key for _ in range(2)}
    assert len(keys) == 2
    assert http.get(f"/v1/batches/{second['id']}").json()["counts"]["completed"] == 2
    again = {"idempotency-key": "a"}
    assert post(http, rows, **again).json()["id"] == post(http, rows, **again).json()["id"]
    other = post(http, lines({"prompt": "c"}), **again)
    assert (other.status_code, error_of(other)["code"]) == (422, "E_KEY_REUSED")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xff", b"{}", b'{"prompt": ""}\n{"prompt": 3}'])
def test_a_batch_without_a_good_line_is_refused(api, tenant, data):
    response = post(api.http(tenant), data)
    assert (response.status_code, error_of(response)["code"]) in ((400, "E_MANIFEST"), (400, "E_BODY"))
    assert api.http(tenant).get("/v1/batches").json()["data"] == []


def test_another_tenants_batch_does_not_exist(api, tenant):
    batch = post(api.http(tenant), lines({"prompt": "a", **SMALL})).json()["id"]
    http = api.http(f"{tenant}-other")
    assert error_of(http.get(f"/v1/batches/{batch}"))["code"] == "E_NOT_FOUND"
    assert error_of(http.post(f"/v1/batches/{batch}/cancel"))["code"] == "E_NOT_FOUND"


def test_limits_of_a_batch(tmp_path, tenant):
    farm = ApiFarm(tmp_path, ApiSettings(max_batch_rows=2, max_batch_bytes=10_000))
    try:
        http = farm.http(tenant)
        assert "1 to 2" in error_of(post(http, b'{"prompt": "x"}\n' * 3))["message"]
        response = post(http, b" " * 10_001)
        assert (response.status_code, error_of(response)["code"]) == (413, "E_TOO_LARGE")
    finally:
        farm.close()
