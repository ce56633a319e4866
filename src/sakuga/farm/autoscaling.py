"""How many lanes a pool should have: by the predicted seconds of work that wait, not by requests.

Serve pickles the class by value into its controller and calls it about ten times a second, so it imports nothing of
ours and does no I/O in a call: a thread reads the API's Prometheus page.

Lanes form a ladder. A lane is *needed* while it renders, or while work would else wait longer than `patience_s`; one
spare lane stands above those, as a burst rarely ends with its first request. A lane that is no longer needed is kept
for a while, the first for `keep_s`, each higher one for a share of that: the next burst is sooner small than large, and
what is kept for nothing is paid. Serve picks whom it stops without looking at load, so no more lanes go than are idle.

Run: pytest tests/unit/test_autoscaling.py; python benchmarks/burst.py --json
"""

import logging
import re
import threading
import time
import urllib.request

POLL_S = 0.5
STALE_S = 15.0
"""Numbers older than this change nothing."""
WORK_SHARE = 0.3
"""Of a mean render's seconds: who waits for minutes anyway bears a little more."""


class BacklogPolicy:
    """Lanes for one model."""

    def __init__(
        self,
        *,
        min_lanes: int,
        max_lanes: int,
        metrics_url: str = "",
        model: str = "",
        patience_s: float = 11.0,
        keep_s: float = 635.0,
        keep_share: float = 0.7,
        spare_lanes: int = 1,
    ) -> None:
        self._url, self._model = metrics_url, model
        self._min, self._max, self._spare = min_lanes, max_lanes, spare_lanes
        self._patience_s = patience_s
        self._keep_s = [keep_s * keep_share**rung for rung in range(max_lanes)]
        self._needed_at = [float("-inf")] * max_lanes
        """When each rung of the ladder was last needed."""
        self._seen: tuple[float, float, int, int] | None = None
        self._seen_at = float("-inf")
        self._thread: threading.Thread | None = None

    def __call__(self, ctx) -> tuple[int, dict]:
        if self._thread is None:  # here, as the class travels before
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        now = time.monotonic()
        if self._seen is None or now - self._seen_at > STALE_S:
            return ctx.target_num_replicas, {}
        queued_s, running_s, num_queued, num_running = self._seen
        return self.decide(queued_s, running_s, num_queued, num_running, now), {}

    def decide(self, queued_s: float, running_s: float, num_queued: int, num_running: int, now: float) -> int:
        """The lanes wanted, with `num_running` of them at work; `running_s` is the rest of what they do."""
        needed = self.needed(queued_s, running_s, num_queued, num_running)
        for rung in range(needed):
            self._needed_at[rung] = now
        wanted = max(needed, num_running)
        if needed:
            wanted += self._spare
        kept = [rung + 1 for rung in range(self._max) if now - self._needed_at[rung] < self._keep_s[rung]]
        return min(self._max, max(self._min, wanted, max(kept, default=0)))

    def needed(self, queued_s: float, running_s: float, num_queued: int, num_running: int) -> int:
        """The fewest lanes with which the last in the queue begins within the patience.

        With m lanes at work the first is free after about running_s / m / (m + 1) * 2 seconds, and those before the
        last one are shared by m.
        """
        if not num_queued:
            return num_running
        before_s, patience_s = queued_s - queued_s / num_queued, self._patience_s
        patience_s = max(patience_s, WORK_SHARE * queued_s / num_queued)
        most = min(num_queued + num_running, self._max)
        lanes = max(1, num_running)
        while lanes < most:
            wait_s = 2 * running_s / (lanes * (lanes + 1)) + before_s / lanes
            if num_running and wait_s <= patience_s:
                break
            lanes += 1
        return lanes

    def next_change(self, now: float) -> float:
        """When a lane that is kept may go, if nothing else happens."""
        ends = (at + keep_s for at, keep_s in zip(self._needed_at, self._keep_s, strict=True))
        return min((end for end in ends if end > now), default=float("inf"))

    def _watch(self) -> None:
        while True:
            try:
                with urllib.request.urlopen(self._url, timeout=5) as page:
                    text = page.read().decode()
                self._seen = (
                    self._value(text, "queued_seconds"),
                    self._value(text, "running_seconds"),
                    int(self._value(text, "renders", ',state="queued"')),
                    int(self._value(text, "renders", ',state="running"')),
                )
                self._seen_at = time.monotonic()
            except (OSError, ValueError) as error:
                logging.getLogger("ray.serve").warning("lanes of %s keep their number: %s", self._model, error)
            time.sleep(POLL_S)

    def _value(self, text: str, name: str, more: str = "") -> float:
        found = re.search(rf'^sakuga_{name}{{model="{re.escape(self._model)}"{more}}} (\S+)$', text, re.MULTILINE)
        if found is None:
            raise ValueError(f"there is no sakuga_{name} on {self._url}")
        return float(found[1])
