"""Lanes that wait for work inside one process, and how they hear of it: one is woken for each render that comes.

To wake all would have hundreds of idle lanes look for one video. Who is woken and finds nothing for itself (it is kept
away from that render) passes the news on to the next who has not looked since.

Run: pytest tests/unit/test_jobstore_preempt.py
"""

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class News:
    """A render of this model is in the queue."""

    model: str
    number: int


@dataclass(slots=True, eq=False)
class Waiter:
    """One lane's place in the line."""

    models: Collection[str]
    number: int
    """Of the last news before it looked."""
    news: News | None = None
    woken: threading.Event = field(default_factory=threading.Event)


class Waiters:
    """The line."""

    def __init__(self) -> None:
        self._lock, self._line = threading.Lock(), list[Waiter]()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._line)

    def tell(self, models: Iterable[str]) -> None:
        """A render of each of these models has come into the queue."""
        with self._lock:
            number = next(self._numbers)
            for model, num_renders in Counter(models).items():
                for _ in range(min(num_renders, len(self._line))):
                    self._wake(News(model, number))

    @contextlib.contextmanager
    def waiting(self, models: Collection[str]) -> Iterator[Waiter]:
        """Inside, this lane stands in the line."""
        with self._lock:
            waiter = Waiter(models, next(self._numbers))
            self._line.append(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._line.remove(waiter)
                self._wake(waiter.news)

    def looking(self, waiter: Waiter) -> News | None:
        """It looks into the queue now: what it was woken for, and from now on it hears of later news only."""
        with self._lock:
            news, waiter.news = waiter.news, None
            waiter.number = next(self._numbers)
            waiter.woken.clear()
            return news

    def pass_on(self, news: News | None) -> None:
        """There was nothing for the one who was woken."""
        with self._lock:
            self._wake(news)

    def _wake(self, news: News | None) -> None:
        for waiter in self._line:
            if news is not None and waiter.news is None and waiter.number < news.number and news.model in waiter.models:
                waiter.news = news
                waiter.woken.set()
                return
