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
TROUBLE_S = 5.0
"""Between two ticks while the database is away."""
NUM_AT_ONCE = 100


class Keeper:
    """`tick` is cheap and meant for five times a second, `sweep` for once a minute.

    An error in one duty is logged, and the others are done all the same.
    """

    def __init__(self, stores: Stores, objects: ObjectStore | None) -> None:
        """Without `objects` nothing is removed from storage."""
        self._stores, self._objects = stores, objects

    def tick(self) -> bool:
        """Leases that are over, lanes that should make room; whether all went well."""
        return _each(self._stores.renders.reap, self._stores.renders.preempt)

    def sweep(self) -> bool:
        """Jobs whose time is over, objects that nobody needs, the log of the database; whether all went well."""
        return _each(self._stores.jobs.expire, self._clear_away, self._stores.jobs.checkpoint)

    def run(self, over: threading.Event, *, tick_s: float = TICK_S, sweep_s: float = SWEEP_S) -> None:
        """Until `over`. After a time in which the store was away, lanes keep what they had."""
        sweep_at, is_well = time.monotonic(), _each(self._stores.renders.renew_all)
        while not over.wait(tick_s if is_well else max(tick_s, TROUBLE_S)):
            is_well = self.tick() if is_well else _each(self._stores.renders.renew_all)
            if time.monotonic() >= sweep_at:
                self.sweep()
                sweep_at = time.monotonic() + sweep_s

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


def _each(*duties: Callable[[], object]) -> bool:
    is_well = True
    for duty in duties:
        try:
            duty()
        except Exception:  # of the database or of storage, whatever it is: the farm needs its keeper
            logger.exception("the keeper could not do its %s", getattr(duty, "__name__", duty))
            is_well = False
    return is_well
