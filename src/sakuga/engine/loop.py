"""The loop over denoise steps, and what may be asked between two of them: go on, snapshot, pause or cancel.

Whoever drives a render (a command, a lane of the farm) gives a `control`; it sees the state after each step. On
several ranks each has its own opinion, and a rank that left would leave the others in a collective: `agree` makes one
decision of them before anyone acts.     Run: pytest tests/unit/test_engine_loop.py
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar


class Decision(Enum):
    """What happens at a step boundary, from the weakest to the strongest."""

    GO_ON = "go on"
    SNAPSHOT = "snapshot"
    """Save the state and go on."""
    PAUSE = "pause"
    """Save the state and stop."""
    CANCEL = "cancel"
    """Stop; nobody wants the video any more."""


class Boundary(Protocol):
    """A place between two steps: a `RenderState`, or what is known of one that another process holds."""

    @property
    def step(self) -> int:
        """Steps done."""
        ...

    @property
    def is_done(self) -> bool: ...

    @property
    def is_light(self) -> bool:
        """A snapshot here needs nothing of the step cache's memory."""
        ...


At = TypeVar("At", bound=Boundary)


class Stepper(Protocol[At]):
    """Whatever does a step: an engine, or ranks that are told to."""

    def step(self, state: At, /) -> At: ...


Control = Callable[[At], Decision]
Agree = Callable[[Decision], Decision]
"""Called by every rank at every boundary; gives all of them the same decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised(Generic[At]):
    """Where the loop ended: at the last step, or earlier by decision."""

    state: At
    decision: Decision = Decision.GO_ON

    @property
    def is_done(self) -> bool:
        return self.decision is Decision.GO_ON


def denoise(
    engine: Stepper[At],
    state: At,
    control: Control[At],
    *,
    snapshot: Callable[[At], None],
    agree: Agree = lambda decision: decision,
) -> Denoised[At]:
    """Step until the state is done or `control` ends it; `snapshot` saves a state, on one rank.

    After the last step only a cancel counts: to decode is cheaper than to come back.
    """
    while not state.is_done:
        state = engine.step(state)
        decision = agree(control(state))
        if decision is Decision.CANCEL:
            return Denoised(state=state, decision=decision)
        if decision is not Decision.GO_ON and not state.is_done:
            snapshot(state)
            if decision is Decision.PAUSE:
                return Denoised(state=state, decision=decision)
    return Denoised(state=state)


def strongest(decisions: list[Decision]) -> Decision:
    """What all ranks do when they want different things.

    >>> strongest([Decision.GO_ON, Decision.PAUSE, Decision.SNAPSHOT])
    <Decision.PAUSE: 'pause'>
    """
    order = list(Decision)
    return max(decisions, key=order.index)


@dataclass(kw_only=True)
class SnapshotEvery:
    """A control that asks for a snapshot every `num_steps` steps, a little later where it is light then.

    Where the recipe's step cache begins anew a snapshot needs none of its memory, which at 14B and 720p is 774 MB a
    branch for two of the rules. So it waits for such a step, but not for more than as many steps again. Steps that
    took less than `min_s` together are sooner done again than saved.
    """

    num_steps: int
    min_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _last: int = field(default=0)
    _saved_at: float | None = field(default=None)

    def __call__(self, state: Boundary) -> Decision:
        now = self.clock()
        if self._saved_at is None:
            self._saved_at = now
        waited = state.step - self._last
        is_due = waited >= self.num_steps and (state.is_light or waited >= 2 * self.num_steps)
        if not is_due or now - self._saved_at < self.min_s:
            return Decision.GO_ON
        self._last, self._saved_at = state.step, now
        return Decision.SNAPSHOT
