"""The auditor as a Serve deployment: one thread that looks at promoted profiles every few seconds.

It renders nothing itself: references are jobs that lanes claim. When it dies, Serve makes another one, which goes on
from the store.     Run: pytest tests/unit/test_auditing.py tests/ray/test_serving.py
"""

import logging
import threading
from collections.abc import Mapping

from sakuga.errors import ClusterError
from sakuga.farm.pools import AuditArgs, FarmArgs
from sakuga.storage.objects import open_objects
from sakuga.tuning.audit import Auditor

logger = logging.getLogger(__name__)


class AuditorReplica:
    """Audits until it is told to end."""

    def __init__(self, farm: FarmArgs) -> None:
        self._args = farm.audits
        self._auditor = Auditor(stores=farm.stores(), objects=open_objects(farm.objects), rules=farm.audits.rules())
        self._wake, self._is_closing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="auditor", daemon=True)
        self._thread.start()

    def reconfigure(self, config: Mapping[str, object]) -> None:
        """Serve's `user_config`: what it says holds from the next look on, which is now."""
        self._args = AuditArgs.model_validate(config)
        self._auditor.rules = self._args.rules()
        self._wake.set()

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self._auditor.tick()
            except Exception:  # of the store, or of one video: the others shall be audited all the same
                logger.exception("the auditor could not finish its round")
            self._wake.wait(self._args.poll_s)
            self._wake.clear()

    def check_health(self) -> None:
        """Raises ClusterError when nobody audits any more."""
        if not self._thread.is_alive():
            raise ClusterError("the auditor's thread has ended; a new one is needed")

    def __del__(self) -> None:
        self._is_closing = True
        if hasattr(self, "_wake"):
            self._wake.set()
