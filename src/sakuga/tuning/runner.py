"""How trials are run one after the other by something that stays warm; Ray Tune is one that asks, a test another.

Run: pytest tests/unit/test_tuning_trials.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sakuga.tuning.space import Point
from sakuga.tuning.trials import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """Where a trial stands after a piece of its work."""

    figures: Mapping[str, float]
    share: float
    """Of its work that is done, 0 to 1."""

    @property
    def is_done(self) -> bool:
        return self.share >= 1


class TrialRunner(Protocol):
    """Holds the base model and takes trials one at a time; what was loaded for one is there for the next."""

    def begin(self, trial_id: str, point: Point, seed: int) -> None:
        """Take on a trial; what was under way is forgotten. Raises MemoryLimitError for one that will not fit."""
        ...

    def advance(self) -> TrialReport:
        """A piece of its work. Raises what training and rendering raise."""
        ...

    def save(self, folder: Path) -> None:
        """What `restore` needs to go on from here, for a pause or for another trial to take over."""
        ...

    def restore(self, folder: Path) -> None:
        """Go on from what was saved, by this trial or by another of the same shape."""
        ...

    def end(self, state: str, reason: str | None = None) -> TrialResult:
        """The result of the trial, which the sweep's folder has from now on."""
        ...
