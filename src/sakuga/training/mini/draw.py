"""Training clips drawn ahead of time: a GPU encodes faster than one core draws (15 clips a second and core).

Run: pytest tests/unit/test_mini_training.py
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4
"""Results in store for each worker: enough to keep it busy, few enough for memory (a clip is 1.6 MB)."""


def drawn(function: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    """`function` of each item, in order; with workers in so many processes, for which both must pickle."""
    if num_workers == 0:
        yield from map(function, items)
        return
    # spawn: a fork would copy the state of CUDA and of OpenMP's threads.
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > AHEAD * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
