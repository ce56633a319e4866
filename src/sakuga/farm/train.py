"""Training on Ray Train: the loop of `training/` on one to many workers that may come and go.

Samples, noise and gradients of a step do not depend on the number of workers, so a run that loses a node goes on with
fewer, from its last checkpoint, to the same curve. Checkpoints are uploaded before a report returns: Ray counts one
only when its controller has seen it, and one that is still under way would be lost with the worker. A notice that a
node is about to be taken away saves at the next step.

    OUT/                    Ray's checkpoints (step_...), run.json, log.jsonl, tensorboard/, the result

Run: pytest tests/ray/test_train.py
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, get_device
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.validation_config import ValidationConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from sakuga import settings
from sakuga.errors import (
    ClusterError,
    InputError,
    MemoryLimitError,
    NumericsError,
    PreflightError,
    TrainError,
    WeightsError,
    shown,
)
from sakuga.farm.lock import folder_lock
from sakuga.farm.rows import LOCAL, RAY_FAILURES, check_gpus, check_worker_device, cluster
from sakuga.farm.submit import error_of
from sakuga.media import write_json_atomic
from sakuga.training.checkpoint import RunState
from sakuga.training.loop import Wish, run_loop
from sakuga.training.run import (
    TrainJob,
    TrainResult,
    build_trainer,
    check_job,
    copy_results,
    validate_files,
    write_run_json,
)
from sakuga.training.runlog import RunLog
from sakuga.training.trainer import StepReport
from sakuga.training.validation import result_files
from sakuga.training.world import World

log = logging.getLogger(__name__)

TRAIN_ENVIRONMENT = {
    # Ray's controller polls its workers, and every report waits for a poll: 15 reports take 30 s at the default 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # A group that cannot start whole is tried smaller after this; the default of 60 s delays every shrink.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
KEPT_CHECKPOINTS = 3
MAX_FAILURES = 3
"""Worker failures in a row without a new checkpoint; preemptions are not counted."""
FAILED_NAME = ".failed.json"
"""What a worker raised that would be raised again."""
FINAL_ERRORS = (InputError, WeightsError, PreflightError, NumericsError, MemoryLimitError)
NOTICE_EVERY = 5
"""Steps between two looks for a preemption notice: asking is a barrier of all workers."""
RESIZE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """How many, and what each of them has."""

    minimum: int = 1
    maximum: int = 1
    """Above the minimum: Ray starts with what there is, and adds workers when the cluster grows."""
    num_cpus: float = 1
    num_threads: int | None = None
    """Of PyTorch in each; None: the cores shared among the maximum."""

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise TrainError(f"{self.minimum} to {self.maximum} workers cannot be; write N or MIN:MAX from 1 on")

    @classmethod
    def parse(cls, text: str) -> Workers:
        """`4` or `1:8`.

        >>> Workers.parse("1:8").maximum
        8
        """
        low, _, high = text.partition(":")
        try:
            return cls(minimum=int(low), maximum=int(high or low))
        except ValueError as error:
            if isinstance(error, TrainError):
                raise
            raise TrainError(
                f"workers are {shown(text)}; write N, or MIN:MAX for a run that grows and shrinks"
            ) from None


def run_training(
    job: TrainJob, workers: Workers, *, address: str | None = LOCAL, callbacks: Sequence[UserCallback] = ()
) -> TrainResult:
    """Train on a Ray cluster: "local" starts one in this process, None or "auto" takes the one that is there.

    A run of the same `job.out` goes on where it stopped, also after this process has died.

    Raises:
        What `check_job` raises, before anything is started; what a worker raised, as it raised it.
        ClusterError: there is no such cluster, it lacks GPUs, or Ray failed; checkpoints are kept.
    """
    began = time.monotonic()
    check_worker_device(job.device)
    if settings.in_submitted_job() and not Path(job.out).is_absolute():
        raise TrainError(
            f"--out is {shown(job.out)}, which a job would write into Ray's copy of the folder and lose; give an "
            "absolute path on storage that all nodes share"
        )
    if workers.minimum % job.sequence or workers.maximum % job.sequence:
        raise TrainError(
            f"{workers.minimum} to {workers.maximum} workers cannot be split into groups of {job.sequence} that share "
            "a sequence; take multiples of it"
        )
    job = check_job(_absolute(job))
    out = Path(job.out)
    settings.set_for_libraries(TRAIN_ENVIRONMENT)
    with folder_lock(out), cluster(address, workers.maximum, shows_logs=False):
        if job.device == "cuda":
            check_gpus(workers.minimum, may_grow=address != LOCAL)
        write_run_json(job)
        result = _fit(job, workers, callbacks)
    checkpoint, metrics = result
    files = copy_results(checkpoint, out)
    return TrainResult(
        out=out,
        steps=int(metrics.pop("step")),
        files=tuple(files),
        metrics=metrics,
        seconds=time.monotonic() - began,
    )


def _absolute(job: TrainJob) -> TrainJob:
    """Workers have a current folder of their own."""
    files = {name: getattr(job, name) for name in ("prepared", "out", "start_lora", "style_lora")}
    if job.weights is not None and "://" not in job.weights:
        files["weights"] = job.weights
    return dataclasses.replace(job, **{name: path and str(Path(path).resolve()) for name, path in files.items()})


def _fit(job: TrainJob, workers: Workers, callbacks: Sequence[UserCallback]) -> tuple[Path, dict[str, float]]:
    """Ray Train's own call, and what it raises as ours."""
    out = Path(job.out)
    elastic = workers.maximum > workers.minimum
    validation = None
    if job.validation is not None and job.config.trains_lora:
        validation = ValidationConfig(
            fn=_Validate(job),
            ray_remote_kwargs={"num_cpus": 1, "num_gpus": 1 if job.device == "cuda" else 0},
        )
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "num_threads": _threads(workers)},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if job.device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(workers.minimum, workers.maximum) if elastic else workers.maximum,
            use_gpu=job.device == "cuda",
            resources_per_worker={"CPU": workers.num_cpus, **({"GPU": 1} if job.device == "cuda" else {})},
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        run_config=RunConfig(
            name=out.name,
            storage_path=str(out.parent),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, max_preemption_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=list(callbacks),
        ),
        validation_config=validation,
    )
    marker = out / FAILED_NAME
    marker.unlink(missing_ok=True)
    try:
        result = trainer.fit()
    except (ray.train.TrainingFailedError, *RAY_FAILURES) as error:
        _raise_final(marker)
        words = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f"Ray failed ({type(error).__name__}: {words}); the same command goes on from the last checkpoint"
        ) from error
    _raise_final(marker)
    if result.checkpoint is None:
        raise ClusterError(f"Ray ended the run without a checkpoint; look into {out}, then run it again")
    found = result.best_checkpoints or []
    metrics = dict(found[-1][1]) if found else {}
    return Path(result.checkpoint.path), {
        name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))
    }


def _raise_final(marker: Path) -> None:
    """What a worker has written down, whether Ray calls the run's end a failure or not."""
    if marker.is_file():
        raise error_of(json.loads(marker.read_text()))


def _threads(workers: Workers) -> int:
    return (
        workers.num_threads
        or settings.from_environment().num_threads
        or max(1, settings.usable_cores() // workers.maximum)
    )


def _work(given: Mapping[str, object]) -> None:
    """One worker, from its start to its end or its death."""
    job, num_threads = given["job"], given["num_threads"]
    assert isinstance(job, TrainJob)
    assert isinstance(num_threads, int)
    failed = Path(job.out) / FAILED_NAME
    if failed.is_file():
        return  # Ray starts workers anew after any error; here all of them end, and the driver raises what is written
    torch.set_num_threads(num_threads)
    try:
        _train(job)
    except FINAL_ERRORS as error:
        write_json_atomic(failed, error.as_dict())
        raise


def _train(job: TrainJob) -> None:
    world = World.join(sequence=job.sequence, sharded=job.sharded)
    if job.device == "cuda":
        job = dataclasses.replace(job, device=str(get_device()))
    with tempfile.TemporaryDirectory(prefix="sakuga-train-") as scratch:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            trainer = build_trainer(job, world, None)
        else:
            with checkpoint.as_directory() as folder:
                trainer = build_trainer(job, world, Path(folder))
        run = _RayRun(job, world, first_step=trainer.step)
        try:
            run_loop(trainer, run, job.loop, Path(scratch) / "new")
        finally:
            run.close()


class _RayRun:
    """The watcher of a worker: the first one writes the log, all of them report."""

    def __init__(self, job: TrainJob, world: World, *, first_step: int) -> None:
        self._job, self._world = job, world
        self._log = RunLog(Path(job.out), first_step=first_step) if world.is_first else None
        self._saved_at_notice = False
        self._began = time.monotonic()
        self._start = world.gather(f"{time.time_ns() // 10**6:x}")[0]
        """Of these workers, the same on all of them."""

    def on_step(self, report: StepReport, step_s: float) -> None:
        if self._log is not None:
            self._log.on_step(report, step_s)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._log is not None:
            self._log.on_metrics(step, metrics)

    def on_checkpoint(self, state: RunState, staged: Path | None) -> None:
        checkpoint = None if staged is None else ray.train.Checkpoint.from_directory(str(staged))
        validates = self._job.validation is not None and self._job.config.trains_lora
        ray.train.report(
            {"step": state.step, **state.metrics},
            checkpoint=checkpoint,
            # A restarted run may come to the same step again, and a name may be taken only once.
            checkpoint_dir_name=f"step_{state.step:07}_{self._start}",
            validation=checkpoint is not None and validates,
        )

    def wish(self, step: int) -> Wish:
        if step % NOTICE_EVERY:
            return Wish.GO_ON
        if self._world.gather(self._is_late())[0]:  # clocks differ; the first worker's counts
            return Wish.STOP
        if ray.train.get_preemption_info() is None:
            self._saved_at_notice = False
            return Wish.GO_ON
        wish = Wish.GO_ON if self._saved_at_notice else Wish.SAVE
        self._saved_at_notice = True
        return wish

    def _is_late(self) -> bool:
        return self._job.max_seconds is not None and time.monotonic() - self._began > self._job.max_seconds

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


class _Validate:
    """Renders with a checkpoint in a task of its own, while training goes on."""

    def __init__(self, job: TrainJob) -> None:
        device = "cuda" if job.device.startswith("cuda") else "cpu"
        self._job = dataclasses.replace(job, device=device)

    def __call__(self, checkpoint: ray.train.Checkpoint, **_: object) -> dict[str, float]:
        with checkpoint.as_directory() as folder:
            loras = result_files(Path(folder))
            return validate_files(self._job, loras, sheet=Path(self._job.out) / "validation.png")
