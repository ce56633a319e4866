"""Which trials nobody beats, and which of them to take.

Run: pytest tests/unit/test_tuning_pareto.py
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from sakuga.tuning.figures import DIRECTIONS, Figures
from sakuga.tuning.trials import DONE, TrialResult

NEAR = 0.02
"""Of the span of an objective: closer than that two trials count as equal when one is recommended."""

COSTS = frozenset({"seconds", "denoise_s", "train_s", "peak_bytes", "lora_bytes"})


def pooled(results: Iterable[TrialResult], objectives: Sequence[str]) -> list[TrialResult]:
    """One result for each point: of several seeds the means, so that no point is chosen for its luckiest seed.

    It has the id (and the file) of the seed that is best in the first objective. A point of which a seed was stopped,
    refused or failed is as that seed is.
    """
    by_point: dict[str, list[TrialResult]] = {}
    for result in results:
        by_point.setdefault(json.dumps(result.point, sort_keys=True, default=str), []).append(result)
    return [each[0] if len(each) == 1 else _pool(each, objectives) for each in by_point.values()]


def _pool(seeds: Sequence[TrialResult], objectives: Sequence[str]) -> TrialResult:
    ended_badly = next((result for result in seeds if result.state != DONE), None)
    if ended_badly is not None:
        return ended_badly
    if not all(_has_all(result.figures, objectives) for result in seeds):
        return dataclasses.replace(seeds[0], figures={})
    best = max(seeds, key=lambda result: _scores(result.figures, objectives[:1]))
    names = [name for name in best.figures if all(name in result.figures for result in seeds)]
    figures = {name: math.fsum(result.figures[name] for result in seeds) / len(seeds) for name in names}
    return dataclasses.replace(
        best,
        figures=figures,
        rows=tuple(row for result in seeds for row in result.rows),
        reason="; ".join(dict.fromkeys(result.reason for result in seeds if result.reason)) or None,
    )


def measured(results: Iterable[TrialResult], objectives: Sequence[str]) -> list[TrialResult]:
    """The points, `pooled`, that ended well and report every objective as a finite number."""
    points = pooled(results, objectives)
    return [result for result in points if result.state == DONE and _has_all(result.figures, objectives)]


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
