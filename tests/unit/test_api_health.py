"""Health, readiness, metrics."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_farm import wait_for
from sakuga.errors import StoreError, WeightsError

VIDEO = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 4}


def samples(api) -> dict:
    response = api.anonymous().get("/metrics")
    assert response.status_code == 200
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_health_needs_no_key(api):
    assert api.anonymous().get("/healthz").json() == {"status": "ok"}
    wait_for(lambda: api.anonymous().get("/readyz").status_code == 200, "the weights to be read")


@pytest.mark.parametrize("fault", ["weights", "store"])
def test_not_ready_while_something_is_missing(api, monkeypatch, fault):
    def silent() -> None:
        raise StoreError("gone")

    wait_for(lambda: api.anonymous().get("/readyz").status_code == 200, "the weights to be read")
    if fault == "weights":
        monkeypatch.setattr(api.app.state.warmup, "error", WeightsError("gone"))
    else:
        monkeypatch.setattr(api.stores.jobs, "counts", silent)
    response = api.anonymous().get("/readyz")
    assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
    problem = response.json()
    assert {"weights": "the weights", "store": "the job store"}[fault] in problem.pop("detail")
    assert problem == {
        "type": "about:blank", "title": "Service Unavailable", "status": 503,
        "code": "E_WEIGHTS" if fault == "weights" else "E_STORE",
    }  # fmt: skip
    assert int(response.headers["retry-after"]) > 0
    assert api.anonymous().get("/healthz").status_code == 200


def test_the_queue_is_measured_in_seconds(api, tenant):
    empty = samples(api)
    assert (empty["sakuga_queued_seconds", "wan-mini"], empty["sakuga_renders", "queued", "wan-mini"]) == (0, 0)
    http = api.http(tenant)
    prices = [http.post("/v1/videos", json=VIDEO).json()["gpu_seconds"] for _ in range(2)]
    waiting = samples(api)
    assert waiting["sakuga_queued_seconds", "wan-mini"] == pytest.approx(sum(prices), abs=0.01)
    assert waiting["sakuga_renders", "queued", "wan-mini"] == 2
    assert waiting["sakuga_jobs", "queued"] == 2
    claim = api.claim()
    api.stores.renders.heartbeat(claim, 2)
    running = samples(api)
    assert running["sakuga_renders", "running", "wan-mini"] == 1
    assert 0 < running["sakuga_running_seconds", "wan-mini"] < prices[0]
    assert running["sakuga_oldest_wait_seconds", "wan-mini"] >= 0


def test_requests_are_counted_by_route_and_no_label_is_an_id(api, tenant):
    http = api.http(tenant)
    video = http.post("/v1/videos", json=VIDEO).json()["id"]
    http.get(f"/v1/videos/{video}")
    http.request("BREW", "/v1/videos")
    text = api.anonymous().get("/metrics").text
    assert video not in text and tenant not in text and "BREW" not in text
    count = ("sakuga_http_requests_total", "/v1/videos/{video_id}", "200", "GET")
    wait_for(lambda: any(set(count) == set(key) for key in samples(api)), "the request to be counted")
