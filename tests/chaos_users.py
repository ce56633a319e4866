"""The users of a chaos run: they order videos, change their minds, ask again after every error, and note each answer.

Run: pytest tests/ray/test_chaos.py
"""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from chaos_lane import recipe
from history_rows import Call, Message, Order
from sakuga.errors import NotFoundError, SakugaError
from sakuga.jobstore import PRIORITIES, Idempotency, Job, NewJob, Stores
from sakuga.storage.objects import FolderObjects

NUM_HOT = 3
"""Seeds that a tenant orders again and again."""
IN_FLIGHT_S = 3.0
"""Predicted seconds of work above which a user waits: the drain shall be short."""
UPLOADED_S = 600.0
ASK_LIMIT_S = 60.0
WEBHOOK = "https://hooks.example.org/videos"


class User:
    """One tenant's user, a thread of its own."""

    def __init__(
        self, number: int, seed: int, stores: Stores, objects: FolderObjects, picture: Path, over: threading.Event
    ) -> None:
        self._random, self._tenant = random.Random(f"user {number} of {seed}"), f"tenant-{number}"
        self._stores, self._objects, self._picture, self._over = stores, objects, picture, over
        self.orders: list[Order] = []
        self.calls: list[Call] = []
        self._mine: list[tuple[Order, str]] = []

    def run(self, pause_s: float) -> None:
        """Until it is over; what was begun is asked for until it is answered."""
        while not self._over.wait(self._random.expovariate(1 / pause_s)):
            if self._stores.jobs.in_flight_s(self._tenant) < IN_FLIGHT_S:
                self._order()
            if self._mine:
                self._change_mind()

    def _order(self) -> None:
        draw = self._random
        is_bad, is_hot = draw.random() < 0.05, draw.random() < 0.3
        wanted = recipe(draw.randrange(NUM_HOT) if is_hot else draw.randrange(NUM_HOT, 2**31), is_bad=is_bad)
        key = f"{self._tenant}/{len(self.orders)}"
        has_webhook, has_upload = draw.random() < 0.5, draw.random() < 0.3
        order = Order(
            key=key, tenant=self._tenant, render_key=wanted.render_key, is_bad=is_bad, has_webhook=has_webhook
        )  # fmt: skip
        job = NewJob(
            tenant=self._tenant, render_key=wanted.render_key, model=wanted.model, recipe=wanted.as_dict(),
            request={"prompt": wanted.prompt}, num_steps=wanted.num_inference_steps, work_s=1.0,
            priority=draw.choice(sorted(PRIORITIES)), webhook_url=WEBHOOK if has_webhook else None,
            inputs={"input_image": self._upload(key)} if has_upload else {},
        )  # fmt: skip
        once = Idempotency(owner=self._tenant, key=key, fingerprint=wanted.render_key)
        self.orders.append(order)
        for _ in range(1 + (draw.random() < 0.2)):  # the answer may have been lost on the way to the user
            answer = self._ask("submit", order, lambda: self._stores.jobs.submit(job, once))
        if answer is not None:
            self._mine.append((order, answer.id))

    def _upload(self, key: str) -> str:
        """As the API does: named as garbage first, so that it goes when its job never comes."""
        name = f"{self._tenant}/uploads/{key.replace('/', '-')}/input_image.png"
        self._stores.jobs.discard([name], UPLOADED_S)
        self._objects.put(name, self._picture)
        return name

    def _change_mind(self) -> None:
        order, job_id = self._random.choice(self._mine[-8:])
        op = self._random.choices(("read", "cancel", "delete"), (6, 2, 1))[0]
        if op == "delete":
            self._mine.remove((order, job_id))
            self._ask(op, order, lambda: self._stores.jobs.delete(self._tenant, job_id))
        else:
            ask = self._stores.jobs.get if op == "read" else self._stores.jobs.cancel
            self._ask(op, order, lambda: ask(self._tenant, job_id))

    def _ask(self, op: str, order: Order, work: Callable[[], Job | None]) -> Job | None:
        """Again and again until there is an answer; None: there is none, or none that says anything."""
        began, was_doubtful = time.monotonic(), False
        while time.monotonic() - began < ASK_LIMIT_S:
            asked_at, job, error = time.time(), None, None
            try:
                job = work()
            except SakugaError as refused:
                is_done = was_doubtful and op == "delete" and isinstance(refused, NotFoundError)
                error = None if is_done else refused.code
            told = {} if job is None else {"job_id": job.id, "state": job.state}
            call = Call(op=op, key=order.key, asked_at=asked_at, at=time.time(), error=error, **told)
            self.calls.append(call)
            if call.is_acknowledged:
                return job
            was_doubtful = True
            time.sleep(0.1)
        return None


class Receiver:
    """Takes messages to webhooks; now and then it answers 500, and they come again."""

    def __init__(self, seed: int, stores: Stores) -> None:
        self._random, self._webhooks = random.Random(f"receiver of {seed}"), stores.webhooks
        self.messages: list[Message] = []
        self.quiet_since = time.monotonic()

    def run(self, over: threading.Event) -> None:
        while not over.wait(0.1):
            try:
                for delivery in self._webhooks.due(20, lease_s=1.0):
                    self.quiet_since = time.monotonic()
                    self.messages.append(Message(id=delivery.id, job_id=delivery.job_id, type=delivery.type))
                    if self._random.random() < 0.2:
                        self._webhooks.retry(delivery.id, time.time() + 0.2, 500)
                    else:
                        self._webhooks.delivered(delivery.id, 200)
            except SakugaError:  # of the store: what was not reported is due again
                self.quiet_since = time.monotonic()
