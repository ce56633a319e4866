"""Which trials nobody beats, and which of them to take.

Run: pytest tests/unit/test_tuning_pareto.py
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from sakuga.tuning.figures import DIRECTIONS, Figures
from sakuga.tuning.trials import DONE, TrialResult

NEAR = 0.02
"""Of the span of an objective: closer than that two trials count as equal when one is recommended."""

COSTS = frozenset({"seconds", "denoise_s", "train_s", "peak_bytes", "lora_bytes"})


def measured(results: Iterable[TrialResult], objectives: Sequence[str]) -> list[TrialResult]:
    """The trials that ended well and report every objective as a finite number."""
    return [result for result in results if result.state == DONE and _has_all(result.figures, objectives)]


def front(results: Iterable[TrialResult], objectives: Sequence[str]) -> list[TrialResult]:
    """The trials that no other one beats in an objective without losing in another, the best in the first one first.

    Of trials with equal figures all are on it.
    """
    known = measured(results, objectives)
    scores = [_scores(result.figures, objectives) for result in known]
    kept = [
        result
        for result, own in zip(known, scores, strict=True)
        if not any(_beats(other, own) for other in scores)
    ]  # fmt: skip
    return sorted(kept, key=lambda result: _scores(result.figures, objectives), reverse=True)


def recommended(results: Iterable[TrialResult], objectives: Sequence[str]) -> TrialResult | None:
    """The trial of the front that is nearest to the best of everything, each objective on a scale of its own span.

    The span is that of the front, so one hopeless trial does not move it; of `COSTS` the logarithm counts, as half the
    seconds are worth as much to a fast trial as to a slow one. With one objective: the best one.
    """
    best = front(results, objectives)
    if not best:
        return None
    scores = [_scores(_with_logs(result.figures), objectives) for result in best]
    columns = list(zip(*scores, strict=True))
    highs, spans = [max(c) for c in columns], [(max(c) - min(c)) or 1.0 for c in columns]

    def distance(own: tuple[float, ...]) -> float:
        return math.dist([0.0] * len(own), [(h - v) / s for v, h, s in zip(own, highs, spans, strict=True)])

    return min(zip(best, scores, strict=True), key=lambda pair: distance(pair[1]))[0]


def equals(results: Sequence[TrialResult], chosen: TrialResult, objectives: Sequence[str]) -> list[TrialResult]:
    """Other trials that are within `NEAR` of the chosen one in every objective, and so might as well be taken."""
    known = measured(results, objectives)
    columns = list(zip(*(_scores(result.figures, objectives) for result in known), strict=True))
    spans = [max(column) - min(column) for column in columns]
    own = _scores(chosen.figures, objectives)
    return [
        result
        for result in known
        if result != chosen
        and all(
            abs(value - mine) <= NEAR * span
            for value, mine, span in zip(_scores(result.figures, objectives), own, spans, strict=True)
        )
    ]


def better(figure: str, value: float, than: float) -> bool:
    """Whether the figure's value is better.

    >>> better("seconds", 1.0, 2.0)
    True
    """
    return value < than if DIRECTIONS[figure] == "min" else value > than


def best_of(results: Iterable[TrialResult], objective: str) -> TrialResult | None:
    """The trial with the best value of one objective."""
    known = measured(results, [objective])
    return max(known, key=lambda result: _scores(result.figures, [objective]), default=None)


def _with_logs(figures: Figures) -> dict[str, float]:
    return {name: math.log(value) if name in COSTS and value > 0 else value for name, value in figures.items()}


def _has_all(figures: Figures, objectives: Sequence[str]) -> bool:
    return all(math.isfinite(figures.get(name, math.nan)) for name in objectives)


def _scores(figures: Mapping[str, float], objectives: Sequence[str]) -> tuple[float, ...]:
    """More is better."""
    return tuple(-figures[name] if DIRECTIONS[name] == "min" else figures[name] for name in objectives)


def _beats(other: tuple[float, ...], own: tuple[float, ...]) -> bool:
    return other != own and all(o >= v for o, v in zip(other, own, strict=True))
