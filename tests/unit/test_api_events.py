"""Server-sent events of a video."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from api_farm import LIMIT_S, ApiFarm, error_of, wait_for
from sakuga.errors import StoreError

FIELDS = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 4}


@dataclass
class Told:
    seq: int | None
    kind: str
    data: dict


def read(lines: Iterator[str]) -> Iterator[Told]:
    """Events of a stream; comments, pings and the retry go by."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                seq = int(fields["id"]) if "id" in fields else None
                yield Told(seq, fields["event"], json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


class Follower:
    """Reads a stream in a thread."""

    def __init__(self, http: httpx.Client, video: str, last: int | None = None) -> None:
        self.told: list[Told] = []
        self.raw = ""
        headers = {} if last is None else {"last-event-id": str(last)}

        def lines(response: httpx.Response) -> Iterator[str]:
            for line in response.iter_lines():
                self.raw += line + "\n"
                yield line

        def follow() -> None:
            with http.stream("GET", f"/v1/videos/{video}/events", headers=headers) as response:
                self.status, self.headers = response.status_code, response.headers
                for event in read(lines(response)):
                    self.told.append(event)

        self._thread = threading.Thread(target=follow, daemon=True)
        self._thread.start()

    def until(self, kind: str, **data: object) -> Told:
        def found() -> Told | None:
            here = [each for each in list(self.told) if each.kind == kind and data.items() <= each.data.items()]
            return here[-1] if here else None

        return wait_for(found, f"{kind} {data} among {self.told}")  # ty: ignore

    def end(self) -> None:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the stream did not end"


@pytest.fixture
def video(api, tenant) -> str:
    return api.http(tenant).post("/v1/videos", json=FIELDS).json()["id"]


def test_from_the_queue_to_the_end(api, tenant, video):
    follower = Follower(api.http(tenant), video)
    queued = follower.until("queued")
    assert (queued.data["status"], queued.data["queue_position"]) == ("queued", 0)
    assert queued.data["eta_s"] > 0 and queued.data["at"] > 0
    claim = api.claim()
    assert follower.until("running").data["status"] == "in_progress"
    for step in (1, 2):
        api.stores.renders.heartbeat(claim, step)
        told = follower.until("step", step=step)
        assert (told.data["num_steps"], told.data["status"]) == (4, "in_progress")
    assert told.data["eta_s"] < queued.data["eta_s"]
    api.publish(claim)
    follower.end()
    assert (follower.told[-1].kind, follower.told[-1].data["status"]) == ("completed", "completed")
    seqs = [each.seq for each in follower.told]
    assert seqs == sorted(seqs) and None not in seqs
    assert follower.headers["content-type"].startswith("text/event-stream")
    assert "retry: 2000" in follower.raw


def test_a_client_that_was_cut_off_goes_on(api, tenant, video):
    http = api.http(tenant)
    api.render()
    first = Follower(http, video)
    first.end()
    seqs = [each.seq for each in first.told]
    for place, seq in enumerate(seqs[:-1]):
        again = Follower(http, video, last=seq)
        again.end()
        assert [each.seq for each in again.told] == seqs[place + 1 :]
    response = http.get(f"/v1/videos/{video}/events", headers={"last-event-id": str(seqs[-1])})
    assert (response.status_code, response.content) == (204, b"")


def test_the_place_in_the_queue_is_told_when_it_changes(api, tenant, video):
    second = api.http(tenant).post("/v1/videos", json=FIELDS).json()["id"]
    follower = Follower(api.http(tenant), second)
    assert follower.until("queued").data["queue_position"] == 1
    api.claim()
    moved = follower.until("queued", queue_position=0)
    assert moved.seq is None
    api.http(tenant).post(f"/v1/videos/{second}/cancel")
    follower.end()
    assert (follower.told[-1].kind, follower.told[-1].data["status"]) == ("cancelled", "failed")


def test_a_failure_says_why(api, tenant, video):
    for _ in range(2):
        api.stores.renders.failed(api.claim(), "E_NAN", "the render has NaN")
    follower = Follower(api.http(tenant), video)
    follower.end()
    assert follower.told[-1].data["error_code"] == "E_NAN"


def test_a_video_that_is_deleted_ends_the_stream(api, tenant, video):
    follower = Follower(api.http(tenant), video)
    follower.until("queued")
    api.http(tenant).delete(f"/v1/videos/{video}")
    follower.end()
    assert follower.told[-1].kind in ("deleted", "cancelled")


@pytest.mark.parametrize("last", ["-1", "abc", "1e3", "9" * 40, "٣".encode()])
def test_a_number_that_no_event_can_have(api, tenant, video, last):
    response = api.http(tenant).get(f"/v1/videos/{video}/events", headers={"last-event-id": last})
    assert (response.status_code, error_of(response)["code"]) == (400, "E_INPUT")


def test_a_store_that_falls_silent_ends_the_stream_and_not_the_server(api, tenant, video, monkeypatch, caplog):
    follower = Follower(api.http(tenant), video)
    follower.until("queued")

    def silent(*_: object) -> None:
        raise StoreError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(api.stores.jobs, "get", silent)
        follower.end()
        response = api.http(tenant).get(f"/v1/videos/{video}/events")
        assert (response.status_code, error_of(response)["code"]) == (503, "E_STORE")
    assert api.http(tenant).get(f"/v1/videos/{video}").status_code == 200


def test_pings_keep_the_line_open(tmp_path, tenant, monkeypatch):
    monkeypatch.setattr("sakuga.api.events.PING_S", 0.05)
    farm = ApiFarm(tmp_path)
    try:
        http = farm.http(tenant)
        follower = Follower(http, http.post("/v1/videos", json=FIELDS).json()["id"])
        wait_for(lambda: ": ping" in follower.raw, "a ping")
        farm.clear()
        follower.end()
    finally:
        farm.close()
