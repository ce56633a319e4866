"""The keeper of a job store: takes back what silent lanes hold, makes room for urgent work, clears away.

One runs for each store. Two at once do no harm: each step is a conditional change of the store, and to remove an object
twice is to remove it.     Run: pytest tests/unit/test_jobstore_keeper.py
"""

import logging
import threading
import time
from collections.abc import Callable

from sakuga.errors import SakugaError
from sakuga.jobstore.stores import Stores
from sakuga.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

TICK_S = 0.2
SWEEP_S = 60.0
NUM_AT_ONCE = 100


class Keeper:
    """`tick` is cheap and meant for five times a second, `sweep` for once a minute."""

    def __init__(self, stores: Stores, objects: ObjectStore | None) -> None:
        """Without `objects` nothing is removed from storage."""
        self._stores, self._objects = stores, objects

    def tick(self) -> None:
        """Leases that are over, lanes that should make room."""
        self._stores.renders.reap()
        self._stores.renders.preempt()

    def sweep(self) -> None:
        """Jobs whose time is over, objects that nobody needs, the log of the database."""
        self._stores.jobs.expire()
        self._clear_away()
        self._stores.jobs.checkpoint()

    def run(self, over: threading.Event, *, tick_s: float = TICK_S, sweep_s: float = SWEEP_S) -> None:
        """Until `over`. An error is logged, and the next turn comes all the same."""
        sweep_at = time.monotonic()
        while not over.wait(tick_s):
            self._safely(self.tick, "tick")
            if time.monotonic() >= sweep_at:
                self._safely(self.sweep, "sweep")
                sweep_at = time.monotonic() + sweep_s

    def _safely(self, work: Callable[[], None], name: str) -> None:
        try:
            work()
        except Exception:  # of the database or of storage, whatever it is: the farm needs its keeper
            logger.exception("the keeper's %s failed", name)

    def _clear_away(self) -> None:
        """What cannot be removed is given out again later."""
        if self._objects is None:
            return
        while names := self._stores.jobs.garbage(NUM_AT_ONCE):
            removed = []
            for name in names:
                try:
                    self._objects.delete(name)
                    removed.append(name)
                except SakugaError as error:
                    logger.warning("%s stays in storage for now: %s", name, error)
            self._stores.jobs.collected(removed)
            if len(removed) < len(names):  # storage is away; the next sweep tries the rest
                return
