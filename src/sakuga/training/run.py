"""A run from its settings to its file: in this process, or as one of the workers that `farm/train.py` starts.

    OUT/run.json            settings, data, base, versions
    OUT/log.jsonl, OUT/tensorboard/
    OUT/checkpoints/step_N  of a run in one process; Ray keeps those of its workers itself
    OUT/lora.safetensors    the result: lora_high and lora_low of two experts, model.safetensors of a full fine-tuning
    OUT/validation.png      renders of test samples beside their targets

Run: pytest tests/unit/test_training_run.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from sakuga import __version__, settings
from sakuga.errors import LoraError, TrainError, shown
from sakuga.media import check_output_dir, write_json_atomic
from sakuga.media.files import output_error
from sakuga.training.batches import Batches
from sakuga.training.checkpoint import RunState, check_same_data, publish, read_state
from sakuga.training.config import TrainConfig
from sakuga.training.loop import LoopOptions, Wish, run_loop
from sakuga.training.memory import check_step_fits, fullest_plan
from sakuga.training.preflight import preflight
from sakuga.training.prepared import PreparedSet
from sakuga.training.runlog import RunLog
from sakuga.training.trainer import StepReport, Trainer
from sakuga.training.validation import ValidationOptions, result_files, validate
from sakuga.training.world import World
from sakuga.wan.catalogue import card
from sakuga.wan.device import check_device
from sakuga.wan.loading import load_model, locate
from sakuga.wan.passport import read_passport
from sakuga.wan.weights import file_sha256

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
RESULT_NAMES = ("lora.safetensors", "lora_high.safetensors", "lora_low.safetensors", "model.safetensors",
                "model_high.safetensors", "model_low.safetensors")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """All that a worker is told. It travels: paths are absolute and on storage that all workers share."""

    config: TrainConfig
    prepared: str
    """Folder of the prepared data set."""
    out: str
    weights: str | None = None
    device: str = "cpu"
    start_lora: str | None = None
    style_lora: str | None = None
    """Beside the base of a distillation."""
    micro_batch_size: int = 8
    sequence: int = 1
    """Workers that share a sample's tokens."""
    sharded: bool = False
    loop: LoopOptions = field(default_factory=LoopOptions)
    validation: ValidationOptions | None = None
    max_seconds: float | None = None
    """The run saves and ends when it has taken so long, counted from its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run gave."""

    out: Path
    steps: int
    files: tuple[Path, ...]
    metrics: Mapping[str, float]
    seconds: float

    def as_dict(self) -> dict[str, object]:
        return {
            "out": str(self.out),
            "steps": self.steps,
            "files": [str(path) for path in self.files],
            "metrics": dict(self.metrics),
            "seconds": round(self.seconds, 3),
        }


def check_job(job: TrainJob) -> TrainJob:
    """Everything that can be told before a model is loaded. Raises TrainError, DataError, OutputError, LoraError ...

    The job with what follows from its files.
    """
    found, prepared = card(job.config.model), PreparedSet.read(Path(job.prepared))
    job.config.check_card(found)
    check_device(job.device)
    if prepared.model != job.config.model:
        raise TrainError(
            f"{shown(job.prepared)} was prepared for {prepared.model} and {job.config.model} is to be trained; "
            "prepare it for that model"
        )
    if job.config.mode == "distill" and (job.sharded or job.sequence > 1):
        raise TrainError("a distillation runs on whole models; leave out sharding and shared sequences")
    if job.start_lora is not None and not job.config.trains_lora:
        raise TrainError("a full fine-tuning does not start from a LoRA; leave it out, or take mode lora")
    hashes = {"start_lora_sha256": _hash_of(job.start_lora), "style_lora_sha256": _hash_of(job.style_lora)}
    config = dataclasses.replace(job.config, **hashes)
    check_output_dir(Path(job.out))
    return dataclasses.replace(job, config=config)


def _hash_of(lora: str | None) -> str | None:
    if lora is None:
        return None
    if not Path(lora).is_file():
        raise LoraError(f"LoRA {shown(lora)} is not there; check the path")
    return file_sha256(Path(lora))


def build_trainer(job: TrainJob, world: World, checkpoint: Path | None) -> Trainer:
    """Load the base and the data, go on from a checkpoint if there is one, try everything out before the first step.

    Raises what `Trainer`, `restore` and `preflight` raise, TrainError when data or base are not those of the
    checkpoint, and MemoryLimitError for a step that will not fit.
    """
    config, device = job.config, torch.device(job.device)
    where, found = settings.from_environment(), card(job.config.model)
    prepared = PreparedSet.read(Path(job.prepared))
    weights = locate(found, job.weights, cache_dir=where.cache_dir, endpoint_url=where.s3_endpoint_url)
    if weights.sha256 != prepared.weights_sha256:
        raise TrainError(
            f"{shown(job.prepared)} was prepared with other weights of {found.name} ({prepared.weights_sha256[:12]}, "
            f"now {weights.sha256[:12]}); prepare it again"
        )
    state = None
    if checkpoint is not None:
        state = read_state(checkpoint, config)
        check_same_data(state, data_sha256=prepared.content_sha256, weights_sha256=weights.sha256)
    start, style = (None if path is None else Path(path) for path in (job.start_lora, job.style_lora))
    for lora in (start, style):
        if lora is not None:
            _check_base(lora, weights.sha256)
    cache = prepared.open_cache(Path(job.prepared), where.cache_dir / "latents", where.s3_endpoint_url)
    batches = Batches(prepared, cache, config, found, device, micro_batch_size=job.micro_batch_size)
    check_step_fits(fullest_plan(batches, world), found, device)
    model = load_model(weights, device=device, precision=config.base_precision, stages=("denoise",))
    trainer = Trainer(model, batches, config, world, start_lora=start, style_lora=style)
    if checkpoint is not None and state is not None:
        trainer.restore(checkpoint, state)
    else:
        report = preflight(trainer)
        logger.info("preflight %s", report)
    return trainer


def _check_base(path: Path, weights_sha256: str) -> None:
    """A LoRA that says what it was made for may be of the same shapes and of another base all the same."""
    base = read_passport(path).base_sha256
    if base is not None and base != weights_sha256:
        raise LoraError(
            f"LoRA {path} was trained on another base ({base[:12]}) than the run's ({weights_sha256[:12]}); "
            "give that base, or leave it out"
        )


class LocalRun:
    """The watcher of a run in one process: log, checkpoints in OUT, an end after so many seconds or at a signal."""

    def __init__(self, job: TrainJob, log: RunLog, began: float) -> None:
        self.job, self.log, self._began = job, log, began
        self.last: Path | None = None
        self.interrupted = False

    def on_step(self, report: StepReport, step_s: float) -> None:
        self.log.on_step(report, step_s)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.log.on_metrics(step, metrics)

    def on_checkpoint(self, state: RunState, staged: Path | None) -> None:
        assert staged is not None, "one process has every checkpoint"
        folder = checkpoints_dir(Path(self.job.out))
        self.last = publish(staged, folder / staged.name)
        for old in sorted(folder.glob("step_*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def wish(self, step: int) -> Wish:
        late = self.job.max_seconds is not None and time.monotonic() - self._began > self.job.max_seconds
        return Wish.STOP if late or self.interrupted else Wish.GO_ON

    @contextlib.contextmanager
    def stops_gently(self) -> Iterator[None]:
        """Inside, the first Ctrl-C or SIGTERM saves after the step that is under way; the second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _: FrameType | None) -> None:
            self.interrupted = True
            signal.signal(number, before[number])

        try:
            for number in before:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_local(job: TrainJob) -> TrainResult:
    """Train in this process. A run that stopped goes on with its last checkpoint; one that is done changes nothing.

    Raises what `check_job`, `build_trainer` and `run_loop` raise; KeyboardInterrupt, after a checkpoint, when it was
    asked to stop.
    """
    began = time.monotonic()
    job = check_job(job)
    out = Path(job.out)
    checkpoints_dir(out).mkdir(parents=True, exist_ok=True)
    found = sorted(checkpoints_dir(out).glob("step_*"))
    trainer = build_trainer(job, World(), found[-1] if found else None)
    write_run_json(job)
    log = RunLog(out, first_step=trainer.step)
    run = LocalRun(job, log, began)
    with tempfile.TemporaryDirectory(dir=out, prefix=".staging-") as staging, run.stops_gently():
        state = run_loop(trainer, run, job.loop, Path(staging) / "new")
    checkpoint = run.last or found[-1]
    files = copy_results(checkpoint, out)
    if run.interrupted:
        raise KeyboardInterrupt(
            f"stopped; {state.step} of {job.config.num_steps} steps are in {shown(job.out)}; run the same command "
            "again to go on"
        )
    metrics = dict(read_state(checkpoint, job.config).metrics if run.last is None else state.metrics)
    del trainer
    if job.validation is not None and result_files(checkpoint):
        scores = validate_files(job, result_files(checkpoint), sheet=out / "validation.png")
        log.on_metrics(state.step, scores)
        metrics |= scores
    log.close()
    return TrainResult(out=out, steps=state.step, files=tuple(files), metrics=metrics, seconds=time.monotonic() - began)


def validate_files(job: TrainJob, loras: Sequence[Path], *, sheet: Path | None) -> dict[str, float]:
    """Load the whole model and render test samples with a checkpoint's LoRAs."""
    from sakuga.engine import LocalEngine

    assert job.validation is not None
    where, prepared = settings.from_environment(), PreparedSet.read(Path(job.prepared))
    engine = LocalEngine.load(
        job.config.model, job.weights, device=job.device, precision=card(job.config.model).precision
    )
    cache = prepared.open_cache(Path(job.prepared), where.cache_dir / "latents", where.s3_endpoint_url)
    found = validate(engine, prepared, cache, loras, job.validation)
    if sheet is not None and found.rows:
        found.save_sheet(sheet)
    return dict(found.metrics)


def checkpoints_dir(out: Path) -> Path:
    return out / "checkpoints"


def copy_results(checkpoint: Path, out: Path) -> list[Path]:
    """The files that a run is for, from its last checkpoint to where the user looks for them. Raises OutputError."""
    copied = []
    for name in RESULT_NAMES:
        if (checkpoint / name).is_file():
            try:
                shutil.copyfile(checkpoint / name, out / f".{name}.tmp")
                (out / f".{name}.tmp").replace(out / name)
            except OSError as error:
                raise output_error(out / name, error) from error
            copied.append(out / name)
    return copied


def write_run_json(job: TrainJob) -> None:
    fields = {
        "config": job.config.to_dict(),
        "prepared": job.prepared,
        "weights": job.weights,
        "device": job.device,
        "sakuga": __version__,
        "torch": torch.__version__,
    }
    write_json_atomic(Path(job.out) / "run.json", fields)
