"""What runs the trials of a sweep on Ray Tune: an actor that stays warm from one trial to the next.

Tune hands a waiting actor the next trial (`reuse_actors`), and the base model, the data and the caches of its
`TrialRunner` stay. What goes wrong in a trial ends that trial: the actor reports it as a result and takes the next.
Which trial it is says Tune's name of it and not its settings, since population based training copies those.

Run: pytest tests/ray/test_tune.py
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ray import tune

from sakuga import settings
from sakuga.errors import MemoryLimitError
from sakuga.farm.worker import error_columns
from sakuga.media import write_json_atomic
from sakuga.tuning.runner import TrialReport, TrialRunner
from sakuga.tuning.space import Point
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.trials import DONE, FAILED, REFUSED, SweepFolder, TrialResult

log = logging.getLogger(__name__)

RUNNERS = {
    "inference": "sakuga.tuning.measure:InferenceRunner",
    "training": "sakuga.tuning.training_runner:TrainingRunner",
}
STATE = "state"
"""Folder of a trial under way, with what it needs to go on after its driver has died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorPlan:
    """What all executors are told. It travels: the folder lies on storage that they share."""

    sweep: Sweep
    root: str
    runner: str
    """module:class of a TrialRunner."""
    cwd: str
    """Where the driver was started; relative paths of the sweep begin there, and not in Tune's folders."""

    @property
    def folder(self) -> SweepFolder:
        return SweepFolder(Path(self.root))

    def make_runner(self) -> TrialRunner:
        executors = self.sweep.executors
        threads = (
            executors.threads
            or settings.from_environment().num_threads
            or max(1, settings.usable_cores() // executors.count)
        )
        sweep = self.sweep.model_copy(update={"executors": executors.model_copy(update={"threads": threads})})
        module, _, name = self.runner.partition(":")
        return getattr(importlib.import_module(module), name)(sweep, self.folder)


class WarmExecutor(tune.Trainable):
    """One actor of the sweep."""

    def setup(  # ty: ignore[incompatible-method-override]  # `with_parameters` adds the plan
        self, config: Mapping[str, object], *, plan: ExecutorPlan
    ) -> None:
        # Before torch is loaded: threads that spin at barriers stall each other's processes.
        settings.set_for_libraries({"OMP_WAIT_POLICY": "passive"})
        self._plan = plan
        self._runner: TrialRunner | None = None
        self._begin(config)

    def reset_config(self, new_config: Mapping[str, object]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: Mapping[str, object]) -> None:
        """Never raises: a trial that cannot begin is one more result."""
        if os.path.isdir(self._plan.cwd):  # on another node only absolute paths mean something
            os.chdir(self._plan.cwd)
        trial = cast("Mapping[str, object]", config["trial"])
        self._point, self._seed = cast("Point", trial["point"]), cast("int", trial["seed"])
        self._fault: Exception | None = None
        try:
            if self._runner is None:
                self._runner = self._plan.make_runner()
            self._runner.begin(self.trial_name, self._point, self._seed)
            if self._state.is_dir():
                self._runner.restore(self._state)
        except Exception as error:  # noqa: BLE001
            self._fault = error

    def step(self) -> dict[str, object]:
        if self._fault is not None or self._runner is None:
            fault = self._fault or RuntimeError("no runner")
            return self._ended(fault, REFUSED if isinstance(fault, MemoryLimitError) else FAILED)
        try:
            report = self._runner.advance()
            if report.is_done:
                self._runner.end(DONE)
                shutil.rmtree(self._state, ignore_errors=True)
            else:
                self._keep(report)
        except Exception as error:  # noqa: BLE001
            return self._ended(error, FAILED)
        tokens = round(report.share * (self._plan.sweep.budget.tokens or 0))
        return {"figures": dict(report.figures), "share": report.share, "tokens": tokens, "done": report.is_done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        assert self._runner is not None
        self._runner.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: object) -> None:
        if self._fault is None and self._runner is not None:
            try:
                self._runner.restore(Path(str(checkpoint)))
            except Exception as error:  # noqa: BLE001
                self._fault = error

    @property
    def _state(self) -> Path:
        return self._plan.folder.trial(self.trial_name) / STATE

    def _keep(self, report: TrialReport) -> None:
        """Where the trial stands, for a driver that finds it later; whole or not at all."""
        assert self._runner is not None
        if self._plan.sweep.kind != "training":
            return  # what was rendered is kept already
        new, old = self._state.with_suffix(".new"), self._state.with_suffix(".old")
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
        new.mkdir(parents=True)
        self._runner.save(new)
        write_json_atomic(new / "trial.json", {"point": dict(self._point), "seed": self._seed, "share": report.share})
        if self._state.is_dir():
            self._state.rename(old)
        new.rename(self._state)
        shutil.rmtree(old, ignore_errors=True)

    def _ended(self, error: Exception, state: str) -> dict[str, object]:
        code, message = error_columns(error)
        log.warning("trial %s %s: %s", self.trial_name, state, message, exc_info=code == "E_INTERNAL")
        reason = f"{code} {message}"
        if self._runner is not None:
            self._runner.end(state, reason)
        else:
            self._plan.folder.write(
                TrialResult(id=self.trial_name, point=self._point, state=state, reason=reason, seed=self._seed)
            )
        shutil.rmtree(self._state, ignore_errors=True)
        return {"done": True}


def state_of(folder: SweepFolder, trial_id: str) -> Mapping[str, object] | None:
    """Where a trial stood when its driver died, None when it had not come to its first report."""
    path = folder.trial(trial_id) / STATE / "trial.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
