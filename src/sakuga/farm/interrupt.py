"""SIGTERM and SIGHUP as Ctrl-C, so that a run that is told to end in any of the three ways ends in order.

Run: pytest tests/ray/test_bulk.py
"""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Within the block SIGTERM (`ray job stop`, a scheduler) and SIGHUP (a closed terminal) raise KeyboardInterrupt.

    Does nothing outside the main thread, where Python takes no signals. `ray.init` sets handlers of its own: enter
    the block after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
