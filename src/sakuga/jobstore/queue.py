"""Which render a lane takes next, and which one makes room for another: pure choices.

Class first; inside a class the tenant that has used least lately; then deadline and age. A lane prefers what it has
loaded, as loading takes longer than many a render, but not while anything waits longer than `MAX_WAIT_S`.

Run: pytest tests/unit/test_jobstore_queue.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HALF_LIFE_S = 3600.0
"""In which what a tenant used counts half."""
MAX_WAIT_S = 120.0
"""After which a render no longer waits for a lane that has its model loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What waits of one tenant, in one class, for one model."""

    tenant: str
    model: str
    priority: int
    due_at: float
    """The earliest deadline; far away without any."""
    created_at: float
    """Of the oldest."""
    used_gpu_s: float
    """By its tenant, faded to now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A render of the lowest class that a lane has."""

    render_id: str
    step_s: float
    is_asked: bool
    """To yield, before."""
    has_steps: bool
    """Else it is being decoded, and nothing stops it."""


def choose(candidates: Sequence[Candidate], loaded: frozenset[str], now: float) -> Candidate | None:
    """Whose first render is to be claimed; None when nothing waits.

    >>> both = {"priority": 1, "due_at": 1e12, "created_at": 0.0}
    >>> a = Candidate(tenant="t", model="m", used_gpu_s=9.0, **both)
    >>> b = Candidate(tenant="u", model="n", used_gpu_s=0.0, **both)
    >>> [choose([a, b], frozenset(models), 10.0).tenant for models in ((), ("m",), ("n",))]
    ['u', 't', 'u']
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
    return candidate.used_gpu_s, candidate.due_at, candidate.created_at, candidate.tenant


def to_yield(running: Sequence[Running], num_waiting: int, num_freed: int = 0) -> list[str]:
    """Renders whose lanes are asked to make room, so that each urgent one that waits gets a lane soon.

    Those at the shortest time from a step's end. `num_freed` lanes have made room and not yet claimed.

    >>> slow, fast = (Running(render_id=f"{s}", step_s=s, is_asked=False, has_steps=True) for s in (9.0, 2.0))
    >>> to_yield([slow, fast], 1), to_yield([slow, fast], 1, num_freed=1), to_yield([slow, fast], 3)
    (['2.0'], [], ['2.0', '9.0'])
    """
    missing = num_waiting - num_freed - sum(render.is_asked for render in running)
    free = [render for render in running if render.has_steps and not render.is_asked]
    return [render.render_id for render in sorted(free, key=lambda render: render.step_s)[: max(0, missing)]]


def in_order(tenants: Sequence[str], rests_s: Sequence[float], used_gpu_s: Mapping[str, float]) -> list[int]:
    """Renders of one class and model, given by deadline and age, as one lane would take them: their indexes.

    When a render's turn comes, its tenant has used what it has used and what it has waiting before that.
    Plain numbers, as tens of thousands of small objects a second would keep the garbage collector busy.

    >>> in_order(["t", "t", "u"], [5.0, 5.0, 5.0], {"u": 3.0})
    [0, 2, 1]
    """
    used, turns = dict(used_gpu_s), []
    for tenant, rest_s in zip(tenants, rests_s, strict=True):
        turn = used.get(tenant, 0.0)
        used[tenant] = turn + rest_s
        turns.append(turn)
    return sorted(range(len(turns)), key=turns.__getitem__)


def faded(gpu_s: float, since_s: float) -> float:
    """What use counts after a while.

    >>> faded(8.0, 3600.0), faded(8.0, 0.0)
    (4.0, 8.0)
    """
    return gpu_s * 0.5 ** (max(0.0, since_s) / HALF_LIFE_S)
