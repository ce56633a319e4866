"""How many lanes a pool should have: by the predicted seconds of work that wait, not by requests.

Serve pickles the class by value into its controller and calls it about ten times a second, so it imports nothing of
ours and does no I/O in a call: a thread reads the API's Prometheus page.     Run: pytest tests/unit/test_autoscaling.py
"""

import logging
import math
import re
import threading
import time
import urllib.request

POLL_S = 0.5
STALE_S = 15.0
"""Numbers older than this change nothing."""
IDLE_S = 120.0
"""How long a lane may be idle before it goes."""


class BacklogPolicy:
    """Lanes for one model."""

    def __init__(
        self, *, metrics_url: str, model: str, drain_s: float, cold_start_s: float, min_lanes: int, max_lanes: int
    ) -> None:
        self._url, self._model = metrics_url, model
        self._drain_s, self._min, self._max = max(drain_s, cold_start_s), min_lanes, max_lanes
        self._seen: tuple[float, float, int] | None = None
        self._seen_at = 0.0
        self._idle_since: float | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, ctx) -> tuple[int, dict]:
        if self._thread is None:  # here, as the class travels before
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        now = time.monotonic()
        if self._seen is None or now - self._seen_at > STALE_S:
            return ctx.target_num_replicas, {}
        return self.decide(*self._seen, ctx.target_num_replicas, now), {}

    def decide(self, queued_s: float, running_s: float, busy: int, lanes: int, now: float) -> int:
        """The lanes wanted; never fewer than are busy."""
        wanted = math.ceil((queued_s + running_s) / self._drain_s) if queued_s else 0
        wanted = max(self._min, min(self._max, max(wanted, busy)))
        if wanted >= lanes:
            self._idle_since = None
            return wanted
        self._idle_since = now if self._idle_since is None else self._idle_since
        return lanes if now - self._idle_since < IDLE_S else max(wanted, busy)

    def _watch(self) -> None:
        while True:
            try:
                with urllib.request.urlopen(self._url, timeout=5) as page:
                    text = page.read().decode()
                queued, running = (self._value(text, name) for name in ("queued_seconds", "running_seconds"))
                self._seen = queued, running, int(self._value(text, "renders", ',state="running"'))
                self._seen_at = time.monotonic()
            except (OSError, ValueError) as error:
                logging.getLogger("ray.serve").warning("lanes of %s keep their number: %s", self._model, error)
            time.sleep(POLL_S)

    def _value(self, text: str, name: str, more: str = "") -> float:
        found = re.search(rf'^sakuga_{name}{{model="{re.escape(self._model)}"{more}}} (\S+)$', text, re.MULTILINE)
        return 0.0 if found is None else float(found[1])
