"""The loop over denoise steps, and what may be asked between two of them: go on, snapshot, pause or cancel.

Whoever drives a render (a command, a lane of the farm) gives a `control`; it sees the state after each step. On
several ranks each has its own opinion, and a rank that left would leave the others in a collective: `agree` makes one
decision of them before anyone acts.     Run: pytest tests/unit/test_engine_loop.py
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from sakuga.engine.protocol import RenderEngine
from sakuga.engine.state import RenderState


class Decision(Enum):
    """What happens at a step boundary, from the weakest to the strongest."""

    GO_ON = "go on"
    SNAPSHOT = "snapshot"
    """Save the state and go on."""
    PAUSE = "pause"
    """Save the state and stop."""
    CANCEL = "cancel"
    """Stop; nobody wants the video any more."""


Control = Callable[[RenderState], Decision]
Agree = Callable[[Decision], Decision]
"""Called by every rank at every boundary; gives all of them the same decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised:
    """Where the loop ended: at the last step, or earlier by decision."""

    state: RenderState
    decision: Decision = Decision.GO_ON

    @property
    def is_done(self) -> bool:
        return self.decision is Decision.GO_ON


def denoise(
    engine: RenderEngine,
    state: RenderState,
    control: Control,
    *,
    snapshot: Callable[[RenderState], None],
    agree: Agree = lambda decision: decision,
) -> Denoised:
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
    branch for two of the rules. So it waits for such a step, but not for more than as many steps again.
    """

    num_steps: int
    _last: int = field(default=0)

    def __call__(self, state: RenderState) -> Decision:
        waited = state.step - self._last
        light = state.refreshes_next or not state.caches
        if waited < self.num_steps or (not light and waited < 2 * self.num_steps):
            return Decision.GO_ON
        self._last = state.step
        return Decision.SNAPSHOT
