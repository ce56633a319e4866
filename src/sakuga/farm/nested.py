"""A trial of several workers: a Ray Train run of its own within Tune's trial.

Nothing stays warm between such trials; they are for models that one device does not hold or train in time. The workers
report to Ray Train, whose callback hands it to Tune, so that the schedulers work as with warm executors.

Run: pytest tests/ray/test_tune_training.py
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import ray
from ray import tune
from ray.train import Checkpoint
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.tune.integration.ray_train import TuneReportCallback

from sakuga.farm.executor import ExecutorPlan
from sakuga.farm.schedulers import TRIAL
from sakuga.farm.train import Workers, run_training
from sakuga.farm.worker import error_columns
from sakuga.training.loop import LoopOptions
from sakuga.training.prepared import PreparedSet
from sakuga.training.run import TrainJob
from sakuga.training.runlog import read_log
from sakuga.tuning.measure import LoraEvaluator, means
from sakuga.tuning.points import train_config
from sakuga.tuning.space import Point
from sakuga.tuning.training_runner import SLICES, prepared_folder, steps_of
from sakuga.tuning.trials import DONE, FAILED, CaseFigures, TrialResult
from sakuga.wan.catalogue import card

log = logging.getLogger(__name__)


class _Report(TuneReportCallback):
    """What the workers report, with the names of warm trials."""

    def __init__(self, num_steps: int, tokens: int) -> None:
        super().__init__()
        self._num_steps, self._tokens = num_steps, tokens
        self._began = time.monotonic()

    def after_report(
        self, run_context: TrainRunContext, metrics: list[dict[str, object]], checkpoint: Checkpoint | None
    ) -> None:
        first = cast("dict[str, float]", metrics[0])
        share = first["step"] / self._num_steps
        figures = {"heldout_loss": first["heldout/loss"], "train_s": time.monotonic() - self._began}
        report = {"figures": figures, "share": share, "tokens": round(share * self._tokens)}
        super().after_report(run_context, [report], checkpoint)


def run_nested(config: Mapping[str, object], *, plan: ExecutorPlan) -> None:
    """One trial, from its start to its result in the sweep's folder."""
    if os.path.isdir(plan.cwd):
        os.chdir(plan.cwd)
    trial = cast("Mapping[str, object]", config[TRIAL])
    trial_id, point, seed = str(trial["id"]), cast("Point", trial["point"]), cast("int", trial["seed"])
    began = time.time()
    base = TrialResult(id=trial_id, point=point, state=FAILED, seed=seed)
    try:
        result = _trained(plan, base, began)
    except Exception as error:
        code, message = error_columns(error)
        log.warning("trial %s failed: %s", trial_id, message, exc_info=code == "E_INTERNAL")
        result = dataclasses.replace(base, reason=f"{code} {message}")
    plan.folder.write(dataclasses.replace(result, wall_s=time.time() - began))
    if result.state != DONE:
        tune.report({"failed": 1})  # a trial without any report would be an error of Tune's


def _trained(plan: ExecutorPlan, base: TrialResult, began: float) -> TrialResult:
    sweep, folder = plan.sweep, plan.folder
    data = prepared_folder(sweep, folder, cast("int | None", base.point.get("num_frames")))
    config = train_config(sweep, base.point, num_steps=1, seed=base.seed)
    num_steps = steps_of(sweep, config, PreparedSet.read(data), card(sweep.model))
    slice_steps = math.ceil(num_steps / SLICES)
    out = folder.trial(base.id) / f"run-{base.id}"  # Ray goes on with a run of the same name
    job = TrainJob(
        config=dataclasses.replace(config, num_steps=num_steps),
        prepared=str(data),
        out=str(out),
        weights=sweep.weights,
        device=sweep.executors.device,
        loop=LoopOptions(save_every=slice_steps, evaluate_every=slice_steps),
    )
    executors = sweep.executors
    workers = Workers(
        minimum=executors.workers, maximum=executors.workers, num_cpus=executors.cpus, num_threads=executors.threads
    )
    trained = run_training(job, workers, callbacks=[_Report(num_steps, cast("int", sweep.budget.tokens))])
    lora = folder.trial(base.id) / trained.files[0].name
    trained.files[0].replace(lora)
    steps = [line for line in read_log(out) if "step_s" in line]
    figures = {
        "heldout_loss": trained.metrics["heldout/loss"],
        "train_s": sum(line["step_s"] for line in steps),
        "lora_bytes": float(lora.stat().st_size),
    }
    fields, rows = {}, ()
    if sweep.evaluation is not None:
        on_gpu = sweep.executors.device == "cuda"
        fields, rows = ray.get(ray.remote(num_cpus=1, num_gpus=int(on_gpu))(_rendered).remote(plan, str(lora)))
    return dataclasses.replace(
        base, state=DONE, figures={**figures, **means(rows)}, lora=lora.name, fields=fields,
        rows=(CaseFigures(name=f"seed {base.seed}", figures=figures), *rows),
        overhead_s=steps[0]["time"] - steps[0]["step_s"] - began,
    )  # fmt: skip


def _rendered(plan: ExecutorPlan, lora: str) -> tuple[dict[str, object], tuple[CaseFigures, ...]]:
    """In a task of its own: the trial has no device."""
    evaluator = LoraEvaluator(plan.sweep, plan.folder)
    return evaluator.fields(Path(lora)), evaluator.rows(Path(lora))
