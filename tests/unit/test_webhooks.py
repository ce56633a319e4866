"""Webhooks against a receiver on this machine and a clock of the test's own."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from standardwebhooks import Webhook

from receivers import Handler, serving
from sakuga.api import webhooks as sending
from sakuga.api.guarded import AddressGuard
from sakuga.api.webhooks import MAX_PER_TENANT, NUM_THREADS, SCHEDULE_S, WebhookSender, retry_after_s, sign
from sakuga.jobstore import Delivery, NewJob, open_stores

LIMIT_S = 10.0
JOB = NewJob(
    tenant="a",
    render_key="a" * 64,
    model="wan-mini",
    recipe={},
    request={"prompt": "a secret"},
    num_steps=20,
    work_s=5.0,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


class Farm:
    """A job store in which jobs end."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._stores = open_stores(f"sqlite:///{folder}/jobs.db", clock=clock)
        self.webhooks = self._stores.webhooks

    def ended(self, tenant: str, url: str) -> str:
        """The id of a job that is over."""
        job = self._stores.jobs.submit(replace(JOB, tenant=tenant, webhook_url=url))
        return self._stores.jobs.cancel(tenant, job.id).id

    def deliveries(self, *tenants: str) -> list[Delivery]:
        return [each for tenant in tenants for each in self.webhooks.page(tenant, limit=100)[0]]

    def states(self, *tenants: str) -> list[str]:
        return [each.state for each in self.deliveries(*tenants or "a")]


class Receiver:
    """Answers as told; what it got is in `got`."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status, self.headers = 200, {}
        self.gate = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.url = ""

    def job_ids(self) -> list[str]:
        return [json.loads(body)["data"]["id"] for _, body in self.got]

    def plain(self, handler: Handler) -> None:
        self.got.append(({name.lower(): value for name, value in handler.headers.items()}, handler.body))
        handler.reply(self.status, headers=self.headers)

    def slow(self, handler: Handler) -> None:
        self.waiting.release()
        self.gate.wait(LIMIT_S)
        self.plain(handler)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def receiver():
    told = Receiver()
    with serving({"/hook": told.plain, "/slow": told.slow, "/hang-up": lambda handler: None}) as server:
        told.url = f"http://127.0.0.1:{server.port}"
        yield told
        told.gate.set()


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    Farm(folder, Clock()).webhooks.secret("a")
    return folder


@pytest.fixture
def farm(empty_store, tmp_path, clock):
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)  # tables take longer to make than to copy
    return Farm(tmp_path, clock)


@pytest.fixture
def sender(farm, receiver, clock):
    made = WebhookSender(farm.webhooks, AddressGuard(trusted_origins=[receiver.url]), clock=clock, draw=lambda: 0.0)
    yield made
    receiver.gate.set()
    made.stop()


def run(sender: WebhookSender) -> int:
    """How many were sent; all have ended."""
    ended, late = wait(sender.run_due(), LIMIT_S)
    assert not late
    return len(ended)


def test_a_message_is_thin_and_signed_for_its_tenant(farm, sender, receiver):
    job_id = farm.ended("a", f"{receiver.url}/hook")
    farm.ended("b", f"{receiver.url}/hook")
    assert run(sender) == 2
    by_job = {json.loads(body)["data"]["id"]: (headers, body) for headers, body in receiver.got}
    headers, body = by_job[job_id]
    told = json.loads(body)
    assert set(told) == {"type", "timestamp", "data"}
    assert (told["type"], told["data"]["id"]) == ("video.cancelled", job_id)
    assert headers["content-type"] == "application/json"
    assert len(body) < 250 and b"secret" not in body
    assert run(sender) == 0  # delivered is delivered
    assert farm.states("a", "b") == ["delivered", "delivered"]
    secret, other = farm.webhooks.secret("a"), farm.webhooks.secret("b")
    assert secret.startswith("whsec_") and secret != other


def test_what_other_libraries_make_of_a_message(farm):
    secret, body = farm.webhooks.secret("a"), '{"type":"video.completed","timestamp":"x","data":{"id":"vid_1"}}'
    headers = sign(secret, "msg_1", body, time.time())
    assert Webhook(secret).verify(body, headers)["data"] == {"id": "vid_1"}
    client = openai.OpenAI(api_key="unused", webhook_secret=secret)
    event = client.webhooks.unwrap(body, headers)
    assert (event.type, event.data.id) == ("video.completed", "vid_1")
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace("vid_1", "vid_2"), headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, headers, secret=farm.webhooks.secret("b"))


def test_the_whole_schedule_with_one_id(farm, sender, receiver, clock):
    receiver.status = 500
    farm.ended("a", f"{receiver.url}/hook")
    assert run(sender) == 1
    for number, delay_s in enumerate(SCHEDULE_S[1:], 2):
        clock.now += delay_s - 0.5
        assert run(sender) == 0, number  # not a moment too early
        clock.now += 0.5
        assert run(sender) == 1, number
        assert len(receiver.got) == number
    clock.now += 10 * SCHEDULE_S[-1]
    assert run(sender) == 0
    assert farm.states() == ["failed"]
    ids = {headers["webhook-id"] for headers, _ in receiver.got}
    times = [int(headers["webhook-timestamp"]) for headers, _ in receiver.got]
    assert len(ids) == 1
    assert times == sorted(set(times))
    assert len({body for _, body in receiver.got}) == 1


def test_jitter_only_adds(farm, receiver, clock):
    receiver.status = 500
    sender = WebhookSender(farm.webhooks, AddressGuard(trusted_origins=[receiver.url]), clock=clock, draw=lambda: 1.0)
    farm.ended("a", f"{receiver.url}/hook")
    run(sender)
    clock.now += SCHEDULE_S[1] * (1 + sending.JITTER) - 0.01
    assert run(sender) == 0
    clock.now += 0.02
    assert run(sender) == 1
    sender.stop()


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(farm, sender, receiver, status):
    receiver.status = status
    farm.ended("a", f"{receiver.url}/hook")
    run(sender)
    assert farm.states() == ["delivered"]


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_is_a_failure_and_not_followed(farm, sender, receiver, status):
    receiver.status, receiver.headers = status, {"Location": "/elsewhere"}
    farm.ended("a", f"{receiver.url}/hook")
    run(sender)
    assert farm.states() == ["pending"]
    assert len(receiver.got) == 1


def test_gone_switches_the_address_off(farm, sender, receiver, clock):
    receiver.status = 410
    farm.ended("a", f"{receiver.url}/hook")
    run(sender)
    assert [(each.state, each.status) for each in farm.deliveries("a")] == [("failed", 410)]
    receiver.status = 200
    farm.ended("a", f"{receiver.url}/hook")
    clock.now += SCHEDULE_S[-1]
    assert run(sender) == 0
    farm.ended("b", f"{receiver.url}/hook")  # another tenant's business
    assert run(sender) == 1


@pytest.mark.parametrize(
    "status, header, pause_s, delay_s",
    [
        (429, "120", 120, 120),
        (502, None, 60, 60),
        (504, "nonsense", 60, 60),
        (429, "3600", 300, 3600),
        (503, "3600", 0, 5),
        (429, "0", 0, 5),
        (429, "-5", 60, 60),
        (429, "9" * 400, 300, 86_400),
    ],
)
def test_slowing_down(farm, sender, receiver, clock, status, header, pause_s, delay_s):
    """The message waits for as long as it was told; whatever else is due to that tenant for some minutes."""
    receiver.status, receiver.headers = status, {"Retry-After": header} if header else {}
    first = farm.ended("a", f"{receiver.url}/hook")
    run(sender)
    receiver.status = 200
    farm.ended("a", f"{receiver.url}/hook")
    farm.ended("b", f"{receiver.url}/hook")
    assert run(sender) == (1 if pause_s else 2)
    start = clock.now
    if pause_s:
        clock.now = start + pause_s - 0.5
        assert run(sender) == 0
    clock.now = start + delay_s - 0.5
    run(sender)
    assert first not in receiver.job_ids()[1:]
    clock.now = start + delay_s
    run(sender)
    assert first in receiver.job_ids()[1:]
    assert farm.states("a", "b") == ["delivered"] * 3


def test_retry_after_as_a_date():
    assert retry_after_s("Wed, 21 Oct 2026 07:28:00 GMT", 1_792_567_670.0) == 10.0
    with pytest.raises(ValueError):
        retry_after_s("soon", 0.0)


@pytest.mark.parametrize(
    "address", ["{url}/hang-up", "http://127.0.0.1:1/hook", "https://10.0.0.1/", "https://x.invalid/"]
)
def test_no_answer_is_a_failure(farm, sender, receiver, address):
    farm.ended("a", address.format(url=receiver.url))
    run(sender)
    assert farm.states() == ["pending"]


def test_an_answer_that_takes_too_long_is_a_failure(farm, sender, receiver, monkeypatch):
    monkeypatch.setattr(sending, "TIMEOUT_S", 0.2)
    farm.ended("a", f"{receiver.url}/slow")
    run(sender)
    assert farm.states() == ["pending"]


def test_a_slow_receiver_holds_few_threads(farm, sender, receiver):
    for _ in range(3 * NUM_THREADS):
        farm.ended("a", f"{receiver.url}/slow")
    farm.ended("b", f"{receiver.url}/hook")
    started = sender.run_due()
    assert len(started) == MAX_PER_TENANT + 1
    until(lambda: len(receiver.got) == 1)
    assert sum(each.done() for each in started) <= 1


def test_receivers_that_are_all_slow_leave_the_rest_in_the_store(farm, sender, receiver):
    tenants = [f"tenant-{number}" for number in range(NUM_THREADS)]
    for tenant in tenants * MAX_PER_TENANT:
        farm.ended(tenant, f"{receiver.url}/slow")
    started = sender.run_due()
    assert len(started) == NUM_THREADS
    assert not sender.run_due()  # and comes back at once
    for _ in range(NUM_THREADS):
        assert receiver.waiting.acquire(timeout=LIMIT_S)
    assert not receiver.waiting.acquire(blocking=False)
    receiver.gate.set()
    assert not wait(started, LIMIT_S).not_done
    assert run(sender) == NUM_THREADS
    assert set(farm.states(*tenants)) == {"delivered"}


def test_a_crash_between_sending_and_telling_sends_again_with_the_same_id(farm, sender, receiver, clock, monkeypatch):
    farm.ended("a", f"{receiver.url}/hook")
    with monkeypatch.context() as patched:
        patched.setattr(farm.webhooks, "delivered", fails)
        assert run(sender) == 1
    assert run(sender) == 0
    clock.now += sending.LEASE_S + 1
    assert run(sender) == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert farm.states() == ["delivered"]


def test_in_the_background_through_a_store_that_is_away(farm, sender, receiver, monkeypatch):
    monkeypatch.setattr(sending, "POLL_S", 0.01)
    real, calls = farm.webhooks.due, []

    def due(*arguments, **options):
        calls.append(1)
        return fails() if len(calls) == 1 else real(*arguments, **options)

    monkeypatch.setattr(farm.webhooks, "due", due)
    farm.ended("a", f"{receiver.url}/hook")
    sender.start()
    until(lambda: farm.states() == ["delivered"])
    sender.stop()
    num_calls = len(calls)
    farm.ended("a", f"{receiver.url}/hook")
    assert len(calls) == num_calls  # the thread has ended


def fails(*arguments, **options):
    raise OSError("the store is away")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
