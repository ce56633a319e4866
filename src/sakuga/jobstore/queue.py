"""Which render a lane takes next: a pure choice among the first of each tenant.

Class first; inside a class the tenant that has used least lately; then deadline and age. A lane prefers what it has
loaded, as loading takes longer than many a render, but not while anything waits longer than `MAX_WAIT_S`.

Run: pytest tests/unit/test_jobstore_queue.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

HALF_LIFE_S = 3600.0
"""In which what a tenant used counts half."""
MAX_WAIT_S = 120.0
"""After which a render no longer waits for a lane that has its model loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A queued render."""

    render_id: str
    tenant: str
    model: str
    priority: int
    deadline_at: float | None
    created_at: float
    used_gpu_s: float
    """By its tenant, faded to now."""


def choose(candidates: Sequence[Candidate], loaded: frozenset[str], now: float) -> Candidate | None:
    """The one to claim; None when nothing waits.

    >>> both = {"priority": 1, "deadline_at": None, "created_at": 0.0}
    >>> a = Candidate(render_id="a", tenant="t", model="m", used_gpu_s=9.0, **both)
    >>> b = Candidate(render_id="b", tenant="u", model="n", used_gpu_s=0.0, **both)
    >>> [choose([a, b], frozenset(models), 10.0).render_id for models in ((), ("m",), ("n",))]
    ['b', 'a', 'b']
    """
    if not candidates:
        return None
    top = max(candidate.priority for candidate in candidates)
    first = [candidate for candidate in candidates if candidate.priority == top]
    best = min(first, key=_rank)
    at_hand = [candidate for candidate in first if candidate.model in loaded]
    if not at_hand or now - min(candidate.created_at for candidate in first) > MAX_WAIT_S:
        return best
    return min(at_hand, key=_rank)


def _rank(candidate: Candidate) -> tuple[float, float, float, str]:
    deadline = float("inf") if candidate.deadline_at is None else candidate.deadline_at
    return candidate.used_gpu_s, deadline, candidate.created_at, candidate.render_id


def faded(gpu_s: float, since_s: float) -> float:
    """What use counts after a while.

    >>> faded(8.0, 3600.0), faded(8.0, 0.0)
    (4.0, 8.0)
    """
    return gpu_s * 0.5 ** (max(0.0, since_s) / HALF_LIFE_S)
