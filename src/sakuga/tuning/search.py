"""Which trial is next: all points of a grid, points drawn by chance, or those that Optuna asks for.

Every point ends in the sweep's Optuna storage, whoever chose it, so that one dashboard shows any sweep. A point is
trained with each of the sweep's seeds, and Optuna is told the means. What the folder has a result of is not run again;
what was under way when a driver died is asked for first. A trial that failed is told as such, and teaches nothing; the
next driver runs it again, as what failed it may have been mended.

Run: pytest tests/unit/test_tuning_search.py
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sakuga.tuning.space import Choice, Parameter, Point, Range, Space, grid, trial_id
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.trials import DONE, SweepFolder, TrialResult

log = logging.getLogger(__name__)

MAX_REPEATS = 100
"""Points in a row that were there before; a search that asks for more of them has seen its space."""
ASKED = ("tpe", "nsga2")
Label = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One trial to run."""

    id: str
    point: Point
    seed: int


@dataclass(slots=True, kw_only=True)
class _Group:
    """A point with all its training seeds."""

    point: Point
    wanted: tuple[int, ...]
    numbers: list[int] = field(default_factory=list)
    """Of Optuna's trials that asked for it."""
    results: dict[int, TrialResult] = field(default_factory=dict)
    """By training seed."""
    is_again: bool = False
    """An earlier driver has told Optuna of it, and it was run again since."""

    @property
    def is_whole(self) -> bool:
        return set(self.results) >= set(self.wanted)


class Search:
    """The trials of a sweep one after the other."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        self._sweep, self._folder = sweep, folder
        folder.forget_failed()
        self._parameters = sweep.parameters
        self._distributions = {name: distribution(each) for name, each in self._parameters.items()}
        self._queue: deque[Work] = deque()
        self._open: dict[str, _Group] = {}
        self._seen: set[str] = set()
        self._study = self._study_of()
        self._points = self._listed()
        self._catch_up()

    @property
    def limit(self) -> int:
        """Points in all: the budget's, or as many as there are."""
        sizes = [len(each.values) if isinstance(each, Choice) else math.inf for each in self._parameters.values()]
        return int(min(math.prod(sizes), self._sweep.budget.trials or math.inf))

    @property
    def num_trials(self) -> int:
        return self.limit * len(self._seeds)

    def next(self) -> Work | None:
        """None when there is no more to run."""
        while not self._queue:
            if not self._propose():
                return None
        return self._queue.popleft()

    def done(self, work: Work, result: TrialResult) -> None:
        key = trial_id(work.point)
        self._open[key].results[work.seed] = result
        if self._open[key].is_whole:
            self._close(key)

    @property
    def _seeds(self) -> tuple[int, ...]:
        return self._sweep.seeds if self._sweep.kind == "training" else (0,)

    def _propose(self) -> bool:
        """Look at another point; False when there is none."""
        if self._sweep.search.algorithm not in ASKED:
            point = next(self._points, None)
            if point is not None:
                self._begin(point)
            return point is not None
        for _ in range(MAX_REPEATS):
            if len(self._seen) >= self.limit:
                return False
            asked = self._study.ask(self._distributions)
            if self._begin(self._point(asked.params), asked.number):
                return True
        log.warning("the search repeats itself; %d of %d points were tried", len(self._seen), self.limit)
        return False

    def _begin(self, point: Point, number: int | None = None) -> bool:
        """Whether there is something of the point to run that was not asked for before."""
        key, lacking = trial_id(point), []
        self._seen.add(key)
        group = self._open.get(key)
        if group is None:
            group = self._open[key] = _Group(point=point, wanted=self._seeds)
            for seed in self._seeds:
                identity = id_of(self._sweep, point, seed)
                result = self._folder.result(identity)
                if result is None:
                    lacking.append(Work(id=identity, point=point, seed=seed))
                else:
                    group.results[seed] = result
            was_told = number is None if self._sweep.search.algorithm in ASKED else key in self._told
            group.is_again = was_told and bool(lacking)
        if number is not None:
            group.numbers.append(number)
        if group.is_whole:
            self._close(key)
        self._queue.extend(lacking)
        return bool(lacking)

    def _close(self, key: str) -> None:
        """Tell Optuna."""
        group = self._open.pop(key)
        values = objective_values(self._sweep, list(group.results.values()))
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        for number in group.numbers:
            self._study.tell(number, values, state=state)
        is_untold = self._sweep.search.algorithm not in ASKED and key not in self._told
        if is_untold or (group.is_again and values is not None and not group.numbers):
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    values=values,
                    params={name: label(self._parameters[name], value) for name, value in group.point.items()},
                    distributions=self._distributions,
                    user_attrs={"point": key},
                )
            )

    def _catch_up(self) -> None:
        """What an earlier driver left in the storage."""
        trials = self._study.get_trials(deepcopy=False)
        self._told = {str(trial.user_attrs.get("point")) for trial in trials}
        if self._sweep.search.algorithm in ASKED:
            for trial in trials:
                self._begin(self._point(trial.params), None if trial.state.is_finished() else trial.number)

    def _listed(self) -> Iterator[Point]:
        """Of a search that asks nobody."""
        if self._sweep.search.algorithm == "grid":
            return itertools.islice(grid(self._parameters), self.limit)
        return iter(random_points(self._parameters, self.limit, self._sweep.search.seed))

    def _point(self, labels: Mapping[str, object]) -> Point:
        """In the order of the sweep file, which the storage does not keep."""
        return {name: value_of(parameter, labels[name]) for name, parameter in self._parameters.items()}

    def _study_of(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        ways = self._sweep.directions.values()
        study = optuna.create_study(
            storage=f"sqlite:///{self._folder.path.resolve() / 'optuna.sqlite'}",
            study_name=self._sweep.name,
            directions=[StudyDirection.MAXIMIZE if way == "max" else StudyDirection.MINIMIZE for way in ways],
            load_if_exists=True,
        )
        if self._sweep.search.algorithm in ASKED:
            # A search that goes on must not draw again what it drew at its start.
            study.sampler = _sampler(self._sweep, self._sweep.search.seed + len(study.get_trials(deepcopy=False)))
        return study


def id_of(sweep: Sweep, point: Point, seed: int) -> str:
    """Of a trial: a hash of its content."""
    return trial_id({**point, "training seed": seed} if sweep.kind == "training" else point)


def distribution(parameter: Parameter) -> BaseDistribution:
    """A parameter as Optuna has it."""
    if isinstance(parameter, Choice):
        return CategoricalDistribution([label(parameter, value) for value in parameter.values])
    if parameter.is_whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)


def label(parameter: Parameter, value: object) -> Label:
    """A value as Optuna's storage takes it: lists as JSON.

    >>> label(Choice(values=(["q", "k"],)), ["q", "k"])
    '["q", "k"]'
    """
    if isinstance(parameter, Range) or value is None or isinstance(value, (str, int, float, bool)):
        return value  # ty: ignore[invalid-explicit-return]  # a range's value is a number
    return json.dumps(value)


def value_of(parameter: Parameter, labelled: object) -> object:
    """The way back."""
    if isinstance(parameter, Range):
        return labelled
    return next(
        value for value in parameter.values if (kept := label(parameter, value)) == labelled
        and isinstance(kept, bool) == isinstance(labelled, bool)
    )  # fmt: skip


def random_points(space: Space, count: int, seed: int) -> list[dict[str, object]]:
    """Different ones, the same for the same seed; fewer when the space has no more."""
    rng, found = random.Random(seed), dict[str, dict[str, object]]()
    for _ in range(MAX_REPEATS * count):
        if len(found) == count:
            break
        point = {name: _drawn(parameter, rng) for name, parameter in space.items()}
        found.setdefault(trial_id(point), point)
    return list(found.values())


def objective_values(sweep: Sweep, results: Sequence[TrialResult]) -> list[float] | None:
    """Means over the training seeds that got through; None unless all objectives are there."""
    done = [result.figures for result in results if result.state == DONE]
    if not done or not all(name in figures for figures in done for name in sweep.objectives):
        return None
    values = [sum(figures[name] for figures in done) / len(done) for name in sweep.objectives]
    return values if all(map(math.isfinite, values)) else None


def _drawn(parameter: Parameter, rng: random.Random) -> object:
    if isinstance(parameter, Choice):
        return rng.choice(parameter.values)
    if parameter.log:
        drawn = math.exp(rng.uniform(math.log(parameter.low), math.log(parameter.high)))
        drawn = min(max(drawn, parameter.low), parameter.high)  # rounding must not leave the range
        return round(drawn) if parameter.is_whole else drawn
    if parameter.is_whole:
        return rng.randint(int(parameter.low), int(parameter.high))
    return rng.uniform(parameter.low, parameter.high)


def _sampler(sweep: Sweep, seed: int) -> optuna.samplers.BaseSampler:
    if sweep.search.algorithm == "nsga2":
        # Of 50, the default, the second generation would come after most sweeps have ended.
        population = min(50, max(4, (sweep.budget.trials or 0) // 4))
        return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Trials that run side by side keep away from each other's places.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=sweep.executors.count > 1)
