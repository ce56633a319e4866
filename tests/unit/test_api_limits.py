"""Quotas in GPU-seconds, a full queue, a store that cannot be asked."""

import threading

import pytest

from api_farm import ApiFarm, error_of
from sakuga.api import ApiSettings
from sakuga.errors import StoreError

VIDEO = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 4}


def test_a_quota_is_told_and_kept(api, tenant):
    price = api.http(f"{tenant}-other").post("/v1/videos", json=VIDEO).json()["gpu_seconds"]
    http = api.http(tenant, quota_gpu_s=2.5 * price)
    for left in (1.5, 0.5):
        answer = http.post("/v1/videos", json=VIDEO)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == f'"gpu-seconds";q={2.5 * price:.0f};w=3600'
        assert answer.headers["ratelimit"] == f'"gpu-seconds";r={left * price:.0f};t=3600'
    refused = http.post("/v1/videos", json=VIDEO)
    assert (refused.status_code, error_of(refused)["code"], error_of(refused)["type"]) == (
        429, "E_QUOTA", "rate_limit_error",
    )  # fmt: skip
    wait_s = int(refused.headers["retry-after"])
    assert 0 < wait_s < 3600, "a third has to fade"
    assert refused.headers["ratelimit"].endswith(f"t={wait_s}")
    assert http.get("/v1/videos").status_code == 200


def test_more_than_a_key_ever_has(api, tenant):
    refused = api.http(tenant, quota_gpu_s=1e-6).post("/v1/videos", json=VIDEO)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")


def test_a_request_that_was_taken_is_not_refused_when_it_comes_again(api, tenant):
    price = api.http(f"{tenant}-other").post("/v1/videos", json=VIDEO).json()["gpu_seconds"]
    http, again = api.http(tenant, quota_gpu_s=1.5 * price), {"idempotency-key": "a"}
    first = http.post("/v1/videos", json=VIDEO, headers=again)
    assert http.post("/v1/videos", json=VIDEO).status_code == 429
    assert http.post("/v1/videos", json=VIDEO, headers=again).json()["id"] == first.json()["id"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Room for three."""
    farm = ApiFarm(tmp_path_factory.mktemp("small"), ApiSettings(max_queued_jobs=3))
    yield farm
    farm.close()


def test_a_full_queue(small, tenant):
    http = small.http(tenant)
    answers = [http.post("/v1/videos", json=VIDEO) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert (error_of(answers[3])["code"], answers[3].headers["retry-after"]) == ("E_QUEUE_FULL", "30")
    small.render()
    assert http.post("/v1/videos", json=VIDEO).status_code == 200
    small.clear()
    rows = b'{"prompt": "x"}\n' * 4
    refused = http.post("/v1/batches", content=rows, headers={"content-type": "application/jsonl"})
    assert error_of(refused)["code"] == "E_QUEUE_FULL"


def test_a_store_that_cannot_be_asked(small, tenant, monkeypatch):
    def silent(*_: object, **__: object) -> None:
        raise StoreError("the database at 10.0.0.5 did not answer")

    http = small.http(tenant)
    monkeypatch.setattr(small.stores.keys, "authenticate", silent)
    for response in (http.get("/v1/videos"), http.post("/v1/videos", json=VIDEO), http.get("/v1/models")):
        assert (response.status_code, error_of(response)["code"]) == (503, "E_STORE")
        assert "10.0.0.5" not in response.text, "what is inside the farm is for its log"
        assert int(response.headers["retry-after"]) > 0
        assert "x-should-retry" not in response.headers, "nothing was written"


def test_fifty_equal_requests_at_once_with_one_key(api, tenant):
    http, ids = api.http(tenant), []

    def ask() -> None:
        answer = http.post("/v1/videos", json=VIDEO, headers={"idempotency-key": "a"})
        ids.append(answer.json()["id"] if answer.status_code == 200 else answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 50 and len(set(ids)) == 1
    assert len(http.get("/v1/videos").json()["data"]) == 1
