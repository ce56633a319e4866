"""A sweep on Ray Tune: warm executors that take trial after trial, a search that proposes, a scheduler that stops.

Tune starts and feeds the executors, and its schedulers decide which trials go on. What is known of a sweep lies in its
folder and its Optuna storage, so a driver that died is followed by another one: what has a result is not run again,
and what was under way goes on from its last report.

Run: pytest tests/ray/test_tune.py
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import cast

import ray
from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from tensorboardX import SummaryWriter

from sakuga import settings
from sakuga.errors import ClusterError, SweepError, shown
from sakuga.farm.executor import RUNNERS, STATE, ExecutorPlan, WarmExecutor, state_of
from sakuga.farm.lock import folder_lock
from sakuga.farm.nested import run_nested
from sakuga.farm.prepare import PrepareRequest, prepare
from sakuga.farm.rows import LOCAL, RAY_FAILURES, check_gpus, check_worker_device, cluster
from sakuga.farm.schedulers import TRIAL, scheduler_of
from sakuga.media import write_json_atomic
from sakuga.training.prepared import INDEX_NAME
from sakuga.tuning.pareto import best_of, recommended
from sakuga.tuning.points import check_points
from sakuga.tuning.report import no_trial, write_report
from sakuga.tuning.search import Search, Work
from sakuga.tuning.space import Point
from sakuga.tuning.start import check_start
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.training_runner import is_prepared, lengths, prepared_folder
from sakuga.tuning.trials import FAILED, STATES, STOPPED, CaseFigures, SweepFolder, TrialResult

log = logging.getLogger(__name__)

TUNE_ENVIRONMENT = {
    # Ours are in the sweep's folder: a JSON, a CSV and a TensorBoard file of each trial beside them say the same.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The first Ctrl-C is ours.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Failed trials have no figures.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # What a driver needs to go on is in our folder; Tune's own snapshot of it is for nobody.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_THRESHOLD_S": "5",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
REPORTED = ("share", "tokens", "figures")
LOST_ATTEMPTS = 1
"""Times that a trial is given to another executor when its own has died."""

OnResult = Callable[[TrialResult, int, int], None]
"""Called with a trial that has ended, the number of those and of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSummary:
    """What a sweep came to."""

    name: str
    out: Path
    counts: Mapping[str, int]
    """Trials by their state."""
    num_new: int
    """That ended in this run."""
    recommended: str | None
    """Trial that is near the best in all objectives."""
    best: Mapping[str, Mapping[str, object]]
    """By objective: trial, value, and the point in words."""
    wall_s: float

    @property
    def trials_per_minute(self) -> float:
        return 60 * self.num_new / self.wall_s

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "out": str(self.out),
            "counts": dict(self.counts),
            "num_new": self.num_new,
            "recommended": self.recommended,
            "best": {name: dict(found) for name, found in self.best.items()},
            "wall_s": round(self.wall_s, 2),
            "trials_per_minute": round(self.trials_per_minute, 2),
        }


def run_sweep(
    sweep: Sweep,
    folder: SweepFolder,
    *,
    address: str | None = LOCAL,
    on_result: OnResult | None = None,
    runner: str | None = None,
) -> SweepSummary:
    """Run what has no result yet; the same call goes on where an earlier one was stopped or killed.

    `runner` is module:class of the TrialRunner, that of the sweep's kind if not given.

    Raises:
        SweepError: the sweep cannot be run, its name holds other content, or no trial reported the objectives.
        BusyError: another driver works in the folder.
        ClusterError: no such cluster, no GPUs, or Ray failed; trials that have ended are kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was under way goes on from its last report.
    """
    began = time.monotonic()
    check_points(sweep)
    if runner is None:
        check_start(sweep)
    check_worker_device(sweep.executors.device)
    if settings.in_submitted_job() and not folder.path.is_absolute():
        raise SweepError(
            f"--out is {shown(folder.path.parent)}, which a job would write into Ray's copy of the folder and lose; "
            "give an absolute path on storage that all nodes share"
        )
    folder.create(sweep)
    folder = SweepFolder(folder.path.resolve())
    settings.set_for_libraries(TUNE_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what went wrong with a trial is in its result
    with folder_lock(folder.path):
        search = Search(sweep, folder)
        known = len(folder.results())
        with cluster(address, sweep.executors.count * sweep.executors.workers, shows_logs=False):
            if sweep.executors.device == "cuda":
                check_gpus(sweep.executors.count * sweep.executors.workers, may_grow=address != LOCAL)
            if runner is None and sweep.kind == "training":
                _prepare(sweep, folder)
            plan = ExecutorPlan(
                sweep=sweep, root=str(folder.path), runner=runner or RUNNERS[sweep.kind], cwd=str(Path.cwd())
            )
            _fit(plan, search, on_result)
        summary = _summary(sweep, folder, known, time.monotonic() - began)
        write_report(folder)
        return summary


def _fit(plan: ExecutorPlan, search: Search, on_result: OnResult | None) -> None:
    sweep, executors = plan.sweep, plan.sweep.executors
    book, stop = _Book(search, plan.folder, on_result), _Stop(sweep.budget.minutes)
    is_population = sweep.scheduler.name == "pbt"
    # The members of a population take turns, which Tune's own limit does not know of; the processors limit them.
    cpus = max(executors.cpus, _cluster_cpus() / executors.count) if is_population else executors.cpus
    resources = {"cpu": cpus, "gpu": 1 if executors.device == "cuda" else 0}
    trainable = tune.with_parameters(WarmExecutor, plan=plan)
    if executors.workers > 1:
        # The trial itself only waits; its workers have what they need.
        trainable, resources = tune.with_parameters(run_nested, plan=plan), {"cpu": 0.01}
    population = book.all_configs() if is_population else []
    if is_population and not population:
        return
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={TRIAL: tune.grid_search(population)} if is_population else {},
        tune_config=tune.TuneConfig(
            search_alg=None if is_population else _Proposals(book),
            scheduler=scheduler_of(sweep, plan.folder),
            num_samples=1 if is_population else -1,
            max_concurrent_trials=None if is_population else executors.count,
            reuse_actors=executors.workers == 1,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name=plan.folder.ray.name,
            storage_path=str(plan.folder.path),
            verbose=0,
            stop=stop,
            callbacks=[book],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=LOST_ATTEMPTS),
        ),
    )
    try:
        with stop.signals():
            tuner.fit()
    except (tune.TuneError, *RAY_FAILURES) as error:
        words = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f"Ray failed ({type(error).__name__}: {words}); `sakuga sweep resume {sweep.name}` goes on"
        ) from error
    if stop.interrupted:
        ended = len(plan.folder.results())
        raise KeyboardInterrupt(
            f"stopped; {ended} trials have ended; the same command, or `sakuga sweep resume {sweep.name}`, goes on"
        )
    book.end_the_rest()


def _prepare(sweep: Sweep, folder: SweepFolder) -> None:
    """The data at each length of the sweep, unless it is there; texts and what is encoded are shared by all."""
    if is_prepared(sweep):
        return
    on_ray = sweep.executors.device == "cuda" or sweep.executors.count > 1
    for num_frames in lengths(sweep) or (None,):
        out = prepared_folder(sweep, folder, num_frames)
        if not (out / INDEX_NAME).is_file():
            log.info("preparing %s into %s", sweep.data, out)
            request = PrepareRequest(
                data=Path(cast("str", sweep.data)), out=out, model=sweep.model, weights=sweep.weights,
                where=sweep.where, num_frames=num_frames, device=sweep.executors.device,
                cache=str(folder.prepared / "cache"),
            )  # fmt: skip
            prepare(request, num_workers=sweep.executors.count if on_ray else 0)


def _cluster_cpus() -> float:
    return float(ray.cluster_resources().get("CPU", 1))


def _name_of(trial: Trial) -> str:
    """Fixed when the trial is made; its settings may become another's."""
    return str(trial.config[TRIAL]["id"])


class _Book(Callback):
    """What is under way, what it reports, and how it ends."""

    def __init__(self, search: Search, folder: SweepFolder, on_result: OnResult | None) -> None:
        self._search, self._folder, self._on_result = search, folder, on_result
        self._live: dict[str, Work] = {}
        self._num_ended = len(folder.results())

    def next_config(self) -> dict[str, object] | None:
        work = self._search.next()
        if work is None:
            return None
        self._live[work.id] = work
        stood = state_of(self._folder, work.id) or {}
        # In population based training the rate may be another by now.
        return {"id": work.id, "point": dict(cast("Point", stood.get("point", work.point))), "seed": work.seed}

    def all_configs(self) -> list[dict[str, object]]:
        return list(iter(self.next_config, None))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, object], **info: object
    ) -> None:
        if "share" not in result:
            return
        name, figures = str(trial), cast("dict[str, float]", result["figures"])
        step = result["tokens"] or round(100 * cast("float", result["share"]))
        self._folder.add_to_curve(name, {key: result[key] for key in REPORTED})
        with SummaryWriter(str(self._folder.path / "tensorboard" / name)) as board:
            for key, value in figures.items():
                board.add_scalar(key, value, step)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._end(str(trial), STOPPED, None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._end(str(trial), FAILED, "E_WORKER_DIED its process died, most often for want of memory")

    def end_the_rest(self) -> None:
        """What was under way when the time was up."""
        for trial_id in list(self._live):
            self._end(trial_id, STOPPED, "the sweep's time was up")

    def _end(self, trial_id: str, state: str, reason: str | None) -> None:
        """With the result that its executor has left, or with what it reported before it was stopped."""
        work, result = self._live.pop(trial_id), self._folder.result(trial_id)
        if result is None:
            lines = self._folder.curve(trial_id)
            figures = dict(cast("dict[str, float]", lines[-1]["figures"])) if lines else {}
            result = TrialResult(
                id=trial_id, point=work.point, state=state, figures=figures, reason=reason, seed=work.seed,
                rows=(CaseFigures(name=f"seed {work.seed}", figures=figures),) if figures else (),
            )  # fmt: skip
            self._folder.write(result)
        shutil.rmtree(self._folder.trial(trial_id) / STATE, ignore_errors=True)
        self._search.done(work, result)
        self._num_ended += 1
        if self._on_result is not None:
            self._on_result(result, self._num_ended, self._search.num_trials)

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles what it is given, for a restore that is not ours


class _Proposals(Searcher):
    """Tune's side of a `Search`."""

    def __init__(self, book: _Book) -> None:
        super().__init__()
        self._book = book

    def suggest(self, trial_id: str) -> dict | str:  # ty: ignore[incompatible-method-override]  # the end is a text
        config = self._book.next_config()
        return Searcher.FINISHED if config is None else {TRIAL: config}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: the book is told, and tells Optuna when all seeds of a point are in."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder and Optuna's storage know it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, for the same reason."""


class _Stop(Stopper):
    """Ends the sweep when its time is up, or at Ctrl-C or SIGTERM."""

    def __init__(self, minutes: float | None) -> None:
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.interrupted = False

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.interrupted or (self._deadline is not None and time.monotonic() > self._deadline)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, the first signal ends the sweep in order and the second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: FrameType | None) -> None:
            self.interrupted = True
            signal.signal(number, before[number])

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {int(number): signal.signal(number, ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _summary(sweep: Sweep, folder: SweepFolder, known: int, wall_s: float) -> SweepSummary:
    """Also written as results.json. Raises SweepError when no trial can be chosen."""
    results = folder.results()
    chosen = recommended(results, sweep.objectives)
    best = {name: found for name in sweep.objectives if (found := best_of(results, name)) is not None}
    counts = {state: sum(each.state == state for each in results) for state in STATES}
    summary = SweepSummary(
        name=sweep.name, out=folder.path, counts={state: n for state, n in counts.items() if n},
        num_new=len(results) - known, recommended=None if chosen is None else chosen.id,
        best={name: {"trial": each.id, "value": each.figures[name], "point": each.words}
              for name, each in best.items()},
        wall_s=wall_s,
    )  # fmt: skip
    facts = {**summary.as_dict(), "directions": sweep.directions, "trials": [each.as_dict() for each in results]}
    write_json_atomic(folder.path / "results.json", facts)
    if chosen is None:
        raise SweepError(f"{no_trial(sweep, results)}; mend that, and run it again")
    return summary
