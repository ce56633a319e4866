"""What each parameter does to each objective, with confidence intervals over the seeds or cases that were asked.

A block is what was drawn once: a training seed where there are several, else a prompt, whatever seeds of noise it was
rendered with. Within a block the level's trials are compared with all trials of it, so that an easy case counts no more
than a hard one; the interval is Student's over the blocks (95 %), and there is none for a single block. In a grid the
levels see the same other parameters; where a search chose the points they do not, and an effect may be another
parameter's.

Run: pytest tests/unit/test_tuning_effects.py
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sakuga.tuning.space import Choice, Parameter, word
from sakuga.tuning.trials import DONE, TrialResult

NOISE_SEED = re.compile(r"-s\d+$")
"""Of a case's name, as `cases.py` gives it."""
ROUNDING = 1e-9
"""Of the mean: what sums of floats differ by."""
NUM_BINS = 3
"""Of a range: its trials in thirds by value."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One value of a parameter, or a part of its range."""

    label: str
    mean: float
    """Of the objective over the level's trials."""
    effect: float
    """Above the mean of all trials, within the same blocks."""
    half_width: float | None
    """Of the 95 % interval of the effect; None for a single block."""
    num_trials: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.half_width is not None and abs(self.effect) > self.half_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A parameter's levels for one objective."""

    parameter: str
    objective: str
    levels: tuple[Level, ...]
    num_blocks: int

    @property
    def span(self) -> float:
        """From the lowest level to the highest."""
        return max(level.effect for level in self.levels) - min(level.effect for level in self.levels)

    @property
    def is_clear(self) -> bool:
        return any(level.is_clear for level in self.levels)


Blocks = Mapping[str, float]


def effects(results: Iterable[TrialResult], space: Mapping[str, Parameter], objectives: Sequence[str]) -> list[Effect]:
    """Of every parameter with two or more levels, the strongest of each objective first."""
    done = [result for result in results if result.state == DONE]
    found = []
    by_seed = len({result.seed for result in done}) > 1
    for objective in objectives:
        blocks = [_blocks(result, objective, by_seed=by_seed) for result in done]
        of_objective = [
            effect
            for name, parameter in space.items()
            if (effect := _effect(name, objective, _labels(name, parameter, done), blocks)) is not None
        ]
        found += sorted(of_objective, key=lambda effect: -effect.span)
    return found


def _blocks(result: TrialResult, objective: str, *, by_seed: bool) -> Blocks:
    """Means by block."""
    values: dict[str, list[float]] = {}
    for row in result.rows:
        if objective in row.figures:
            block = str(result.seed) if by_seed else NOISE_SEED.sub("", row.name)
            values.setdefault(block, []).append(row.figures[objective])
    if not values and math.isfinite(whole := result.figures.get(objective, math.nan)):
        values[str(result.seed)] = [whole]
    return {block: math.fsum(some) / len(some) for block, some in values.items()}


def _labels(name: str, parameter: Parameter, results: Sequence[TrialResult]) -> list[str]:
    """The level of each trial."""
    values = [result.point[name] for result in results]
    if isinstance(parameter, Choice):
        names = {repr(value): word(value) for value in values}
        alike = [name for name in names.values() if list(names.values()).count(name) > 1]
        return [repr(value) if names[repr(value)] in alike else names[repr(value)] for value in values]
    numbers = np.array([float(str(value)) for value in values])
    edges = np.quantile(numbers, np.linspace(0, 1, NUM_BINS + 1)) if len(numbers) else np.zeros(NUM_BINS + 1)
    places = np.clip(np.searchsorted(edges[1:-1], numbers, side="left"), 0, NUM_BINS - 1)
    return [f"{edges[place]:.3g} – {edges[place + 1]:.3g}" for place in places]


def _effect(parameter: str, objective: str, labels: Sequence[str], blocks: Sequence[Blocks]) -> Effect | None:
    known = [(label, values) for label, values in zip(labels, blocks, strict=True) if values]
    names = sorted({name for _, values in known for name in values})
    order = list(dict.fromkeys(label for label, _ in known))
    if len(order) < 2:
        return None
    overall = {name: np.mean([values[name] for _, values in known if name in values]) for name in names}
    levels = []
    for label in _in_order(order):
        own = [values for each, values in known if each == label]
        by_block = [
            (np.mean(there), overall[name]) for name in names if (there := [v[name] for v in own if name in v])
        ]  # fmt: skip
        shifts = np.array([mean - base for mean, base in by_block])
        shifts[np.abs(shifts) < ROUNDING * max(abs(base) for _, base in by_block)] = 0.0
        levels.append(
            Level(
                label=label,
                mean=float(np.mean([mean for mean, _ in by_block])),
                effect=float(shifts.mean()),
                half_width=_half_width(shifts),
                num_trials=len(own),
            )
        )
    return Effect(parameter=parameter, objective=objective, levels=tuple(levels), num_blocks=len(names))


def _half_width(values: np.ndarray) -> float | None:
    if len(values) < 2:
        return None
    return float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))


def _in_order(labels: Sequence[str]) -> list[str]:
    """Numbers by size, texts as they came."""

    def number(label: str) -> float:
        try:
            return float(label.split(" – ")[0])
        except ValueError:
            return -math.inf

    return sorted(labels, key=number)
