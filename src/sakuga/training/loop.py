"""The loop that can be read aloud: steps, now and then the held-out loss, now and then a checkpoint.

What others hook in is a `Watcher`: a log, a progress bar, Ray's report. Every worker runs the same loop.

Run: pytest tests/unit/test_training_loop.py
"""

from __future__ import annotations

import enum
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sakuga.training.checkpoint import RunState
from sakuga.training.heldout import held_out_loss
from sakuga.training.prepared import PreparedSample
from sakuga.training.trainer import StepReport, Trainer
from sakuga.wan.passport import LoraPassport

logger = logging.getLogger(__name__)


class Wish(enum.IntEnum):
    """What a watcher wants after a step."""

    GO_ON = 0
    SAVE = 1
    """A checkpoint now, as when a machine is about to be taken away."""
    STOP = 2
    """A checkpoint, and the end."""


class Watcher(Protocol):
    """Who looks at a run; called on every worker."""

    def on_step(self, report: StepReport, step_s: float) -> None: ...

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def on_checkpoint(self, state: RunState, staged: Path | None) -> None:
        """A checkpoint was written into `staged`, which is the watcher's to keep; None on workers without it."""
        ...

    def wish(self, step: int) -> Wish:
        """The same answer on every worker."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """How often a run looks up from its work; nothing here changes what it learns."""

    save_every: int = 250
    evaluate_every: int = 100
    max_held_out: int = 8
    """Test samples of the held-out loss; nine noise levels of each are computed."""
    trigger_words: tuple[str, ...] = ()


def run_loop(trainer: Trainer, watcher: Watcher, options: LoopOptions, staging: Path) -> RunState:
    """Train until the last step or until the watcher says stop; the state at the end.

    `staging` is a folder of this worker for checkpoints that are being written. Raises NumericsError when the loss
    stops being finite, OutputError or DiskFullError when a checkpoint cannot be written.
    """
    config, batches = trainer.config, trainer.batches
    held_out = batches.prepared.of("test")[: options.max_held_out]
    metrics: dict[str, float] = {}
    if trainer.step == 0 and held_out:
        metrics = _evaluate(trainer, watcher, held_out)
    state = _state(trainer, metrics)
    while trainer.step < config.num_steps:
        began = time.monotonic()
        report = trainer.train_step()
        watcher.on_step(report, time.monotonic() - began)
        wish = watcher.wish(trainer.step)
        ends = trainer.step == config.num_steps or wish is Wish.STOP
        if held_out and (ends or trainer.step % options.evaluate_every == 0):
            metrics = _evaluate(trainer, watcher, held_out)
        state = _state(trainer, {"loss": report.loss, **metrics})
        if ends or wish is Wish.SAVE or trainer.step % options.save_every == 0:
            staged = staging / f"step_{trainer.step:07}"
            trainer.write(staged, state, passport_of(trainer, options, metrics))
            watcher.on_checkpoint(state, staged if trainer.world.is_first else None)
        if ends:
            break
    shutil.rmtree(staging, ignore_errors=True)
    return state


def passport_of(trainer: Trainer, options: LoopOptions, metrics: Mapping[str, float]) -> LoraPassport:
    """What the run's LoRA says of itself."""
    config = trainer.config
    distilled = config.mode == "distill"
    return LoraPassport(
        base_sha256=trainer.model.weights_sha256,
        rank=config.rank,
        alpha=float(config.rank),  # the scale is baked in
        targets=config.targets,
        num_inference_steps=config.distill_steps if distilled else None,
        guidance_scale=1.0 if distilled else None,
        flow_shift=config.flow_shift if distilled else None,
        trigger_words=options.trigger_words,
        metrics={name: round(value, 6) for name, value in metrics.items()},
    )


def _evaluate(trainer: Trainer, watcher: Watcher, samples: Sequence[PreparedSample]) -> dict[str, float]:
    """Of the weights that would be saved: the mean, where there is one."""
    with trainer.averaged():
        relabel = {} if trainer.distillation is None else {"relabel": trainer.distillation.held_out}
        metrics = held_out_loss(trainer.module, trainer.batches, trainer.world, samples, **relabel)
    watcher.on_evaluation(trainer.step, metrics)
    return metrics


def _state(trainer: Trainer, metrics: Mapping[str, float]) -> RunState:
    return RunState(
        step=trainer.step,
        data_sha256=trainer.batches.prepared.content_sha256,
        weights_sha256=trainer.model.weights_sha256,
        metrics=metrics,
    )
