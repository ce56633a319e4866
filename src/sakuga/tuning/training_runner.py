"""Trials that train a LoRA: the base, the data and the held-out clips stay loaded, adapters come and go.

Every trial sees the same number of tokens, so one on short clips takes more steps than one on long ones. All are
judged by the same held-out loss, on the longest clips of the sweep. What is tried out before a first step (preflight)
is tried out with the first trial of each kind of adapter; ranks, rates and lengths of clips do not change what it
looks for.

Run: pytest tests/unit/test_tuning_training.py
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from sakuga import settings
from sakuga.errors import DataError, SweepError, TrainError, shown
from sakuga.media import write_json_atomic
from sakuga.training.adapters import remove_lora
from sakuga.training.batches import KEPT_ENTRIES, Batches
from sakuga.training.checkpoint import RunState, check_same_data, read_state
from sakuga.training.config import TrainConfig
from sakuga.training.heldout import held_out_loss
from sakuga.training.loop import LoopOptions, passport_of
from sakuga.training.memory import fullest_plan, step_memory
from sakuga.training.objective import PATCH_AREA
from sakuga.training.preflight import preflight
from sakuga.training.prepared import INDEX_NAME, LatentCache, PreparedSet
from sakuga.training.run import copy_results
from sakuga.training.trainer import Trainer
from sakuga.training.world import World
from sakuga.tuning.admission import admit
from sakuga.tuning.measure import LoraEvaluator, means
from sakuga.tuning.points import train_config
from sakuga.tuning.runner import TrialReport
from sakuga.tuning.space import Choice, Point
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.trials import DONE, CaseFigures, SweepFolder, TrialResult
from sakuga.wan.cards import ModelCard
from sakuga.wan.catalogue import card
from sakuga.wan.device import memory_bytes
from sakuga.wan.loading import LoadedModel, load_model, locate

MICRO_BATCH = 8
SLICES = 4
"""Reports of a trial, beside those at a scheduler's rungs."""
RUNNER_STATE = "runner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """Clips of one length, with what was read of them."""

    prepared: PreparedSet
    cache: LatentCache
    entry: Callable[[str, str], dict[str, torch.Tensor]]
    """Of the cache, by kind and key; keeps what it has read."""


class TrainingRunner:
    """A `TrialRunner` whose trials train."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        if sweep.executors.threads is not None:
            torch.set_num_threads(sweep.executors.threads)
        self.sweep, self.folder = sweep, folder
        self._card: ModelCard = card(sweep.model)
        self._device = torch.device(sweep.executors.device)
        self._environment = settings.from_environment()
        self._weights = locate(
            self._card, sweep.weights, cache_dir=self._environment.cache_dir,
            endpoint_url=self._environment.s3_endpoint_url,
        )  # fmt: skip
        self._model: LoadedModel | None = None
        self._data: dict[int | None, _Data] = {}
        self._evaluator: LoraEvaluator | None = None
        self._trainer: Trainer | None = None
        self._is_clean = True
        """Whether the base has no adapters."""
        self._flown: set[tuple[object, ...]] = set()
        self._free_at = time.monotonic()

    def begin(self, trial_id: str, point: Point, seed: int) -> None:
        """Raises MemoryLimitError for a trial that is predicted not to fit, TrainError, DataError or PreflightError."""
        self._drop()
        self._id, self._point, self._seed = trial_id, dict(point), seed
        self._began, self._overhead_s, self._train_s = time.monotonic(), None, 0.0
        self._notes: list[str] = []
        self._figures: dict[str, float] = {}
        data = self._data_of(cast("int | None", point.get("num_frames")))
        longest = self._data_of(max(lengths(self.sweep), default=None))
        config = train_config(self.sweep, point, num_steps=1, seed=seed)
        num_steps = steps_of(self.sweep, config, data.prepared, self._card)
        config = dataclasses.replace(config, num_steps=num_steps)
        config, micro_batch = self._admitted(config, data)
        self._rates = [(0.0, config.lr)]
        self._is_clean = False
        self._trainer = Trainer(
            self._base(config.base_precision), self._batches(data, config, micro_batch), config, World()
        )
        self._held_out = self._batches(longest, config, micro_batch)
        self._samples = longest.prepared.of("test")[: LoopOptions().max_held_out]
        if not self._samples:
            raise DataError("the data has no test samples, and trials are held to their loss; add some")
        kind = (config.targets, config.base_precision, config.optimizer, config.checkpointing, config.ema_decay)
        if kind not in self._flown:
            preflight(self._trainer)
            self._flown.add(kind)

    def advance(self) -> TrialReport:
        """Train to the next rung or quarter. Raises NumericsError, MemoryLimitError."""
        trainer = self._of_trial()
        total = trainer.config.num_steps
        goal = next(stop for stop in stops(self.sweep, total) if stop > trainer.step)
        began = time.monotonic()
        if self._overhead_s is None:
            self._overhead_s = began - self._free_at
        while trainer.step < goal:
            trainer.train_step()
        self._train_s += time.monotonic() - began
        with step_memory(trainer.plan, self._card, self._device), trainer.averaged():
            found = held_out_loss(trainer.module, self._held_out, trainer.world, self._samples)
        self._figures = {"heldout_loss": found["heldout/loss"], "train_s": self._train_s}
        self._free_at = time.monotonic()
        return TrialReport(figures=self._figures, share=trainer.step / total)

    def save(self, folder: Path) -> None:
        trainer = self._of_trial()
        metrics = {"heldout/loss": self._figures["heldout_loss"]} if self._figures else {}
        state = RunState(
            step=trainer.step,
            data_sha256=trainer.batches.prepared.content_sha256,
            weights_sha256=trainer.model.weights_sha256,
            metrics=metrics,
        )
        trainer.write(folder, state, passport_of(trainer, LoopOptions(), metrics))
        write_json_atomic(folder / RUNNER_STATE, {"train_s": self._train_s, "rates": self._rates})

    def restore(self, folder: Path) -> None:
        """Also of a trial with another rate. Raises TrainError for one that differs in more, or is damaged."""
        trainer = self._of_trial()
        saved = _saved_config(folder)
        dataclasses.replace(saved, lr=trainer.config.lr, seed=trainer.config.seed).check_same(trainer.config)
        state = read_state(folder, saved)
        check_same_data(
            state,
            data_sha256=trainer.batches.prepared.content_sha256,
            weights_sha256=trainer.model.weights_sha256,
        )
        trainer.restore(folder, state)
        kept = json.loads((folder / RUNNER_STATE).read_text(encoding="utf-8"))
        self._train_s, self._rates = kept["train_s"], [(share, rate) for share, rate in kept["rates"]]
        if self._rates[-1][1] != trainer.config.lr:
            self._rates.append((trainer.step / trainer.config.num_steps, trainer.config.lr))

    def end(self, state: str, reason: str | None = None) -> TrialResult:
        """Of one that got through, the LoRA and the renders with it."""
        notes, fields, lora, rows = [*self._notes, *([reason] if reason else [])], {}, None, ()
        figures = dict(self._figures)
        if state == DONE:
            lora = self._written()
            figures["lora_bytes"] = float(lora.stat().st_size)
            if len(self._rates) > 1:
                notes.append(", ".join(f"lr {rate:.3g} from {share:.0%}" for share, rate in self._rates))
            self._drop()
            if self.sweep.evaluation is not None:
                fields, rows = self._rendered(lora)
        self._drop()
        own = (CaseFigures(name=f"seed {self._seed}", figures=figures),) if figures else ()
        result = TrialResult(
            id=self._id, point=self._point, state=state, figures={**figures, **means(rows)}, rows=(*own, *rows),
            reason="; ".join(notes) or None, seed=self._seed, fields=fields, lora=None if lora is None else lora.name,
            overhead_s=self._overhead_s, wall_s=time.monotonic() - self._began,
        )  # fmt: skip
        self.folder.write(result)
        self._free_at = time.monotonic()
        return result

    def _of_trial(self) -> Trainer:
        assert self._trainer is not None, "no trial has begun"
        return self._trainer

    def _written(self) -> Path:
        """The trial's LoRA file, in its folder."""
        folder = self.folder.trial(self._id)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            self.save(Path(scratch) / "last")
            files = copy_results(Path(scratch) / "last", folder)
        if len(files) > 1:
            raise SweepError(f"{self._card.name} has two experts, and a trial trains one; add base.expert: low or high")
        return files[0]

    def _rendered(self, lora: Path) -> tuple[dict[str, object], tuple[CaseFigures, ...]]:
        evaluator = self._evaluator or LoraEvaluator(self.sweep, self.folder)
        if self._device.type == "cuda":
            self._model = None  # a large one would not fit beside the engine that renders
            self._free_memory()
        else:
            self._evaluator = evaluator
        return evaluator.fields(lora), evaluator.rows(lora)

    def _admitted(self, config: TrainConfig, data: _Data) -> tuple[TrainConfig, int]:
        executors = self.sweep.executors
        shared_by = 1 if self._device.type == "cuda" else executors.count
        plan, changes = admit(
            fullest_plan(self._batches(data, config, MICRO_BATCH), World()),
            self._card,
            executors.memory_bytes or memory_bytes(self._device) // shared_by,
            resizes=executors.oversize == "resize",
        )
        if changes is not None:
            self._notes.append(changes)
        assert isinstance(plan.settings, TrainConfig)
        return plan.settings, plan.micro_batch

    def _batches(self, data: _Data, config: TrainConfig, micro_batch: int) -> Batches:
        batches = Batches(data.prepared, data.cache, config, self._card, self._device, micro_batch_size=micro_batch)
        batches.entry = data.entry
        return batches

    def _data_of(self, num_frames: int | None) -> _Data:
        if num_frames not in self._data:
            folder = prepared_folder(self.sweep, self.folder, num_frames)
            prepared = PreparedSet.read(folder)
            if prepared.weights_sha256 != self._weights.sha256:
                raise TrainError(
                    f"{shown(folder)} was prepared with other weights of {prepared.model}; prepare it again"
                )
            where = self._environment
            cache = prepared.open_cache(folder, where.cache_dir / "latents", where.s3_endpoint_url)
            entry = functools.lru_cache(maxsize=KEPT_ENTRIES)(cache.get)
            self._data[num_frames] = _Data(prepared=prepared, cache=cache, entry=entry)
        return self._data[num_frames]

    def _base(self, precision: str) -> LoadedModel:
        if self._model is None or self._model.precision != precision:
            self._model = None  # first: two large models do not fit beside each other
            self._model = load_model(self._weights, device=self._device, precision=precision, stages=("denoise",))
        return self._model

    def _drop(self) -> None:
        """The base as it was loaded, and the memory of what was trained."""
        if self._is_clean:
            return
        self._trainer, self._is_clean = None, True
        if self._model is not None:
            for expert in self._model.experts:
                remove_lora(expert)
        self._free_memory()

    def _free_memory(self) -> None:
        """Of a GPU, which has no place to spare until Python looks for cycles by itself."""
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def lengths(sweep: Sweep) -> tuple[int, ...]:
    """Frames of the clips that its trials learn from; none when the space does not say."""
    parameter = sweep.parameters.get("num_frames")
    if parameter is None:
        return ()
    assert isinstance(parameter, Choice), "a range of lengths is no space"
    return tuple(cast("int", value) for value in parameter.values)


def is_prepared(sweep: Sweep) -> bool:
    """Whether the data is what `sakuga prepare` wrote."""
    return (Path(cast("str", sweep.data)) / INDEX_NAME).is_file()


def check_lengths(sweep: Sweep) -> None:
    """Raises SweepError when the data was prepared at other lengths than the space asks for."""
    asked = set(lengths(sweep))
    if asked and is_prepared(sweep):
        found = {sample.num_frames for sample in PreparedSet.read(Path(cast("str", sweep.data))).samples}
        if found != asked:
            has, wants = (", ".join(map(str, sorted(some))) for some in (found, asked))
            raise SweepError(
                f"{shown(sweep.data)} was prepared at {has} frames and the space asks for {wants}; name the data set "
                "itself, which is then prepared at each length"
            )


def prepared_folder(sweep: Sweep, folder: SweepFolder, num_frames: int | None) -> Path:
    """Of the sweep's data at this length."""
    if is_prepared(sweep):
        return Path(cast("str", sweep.data))
    return folder.prepared / str(num_frames or card(sweep.model).num_frames)


def steps_of(sweep: Sweep, config: TrainConfig, prepared: PreparedSet, found: ModelCard) -> int:
    """Of a trial: as many as the budget's tokens are good for. Raises TrainError when they are too few for one."""
    samples = prepared.of("train")
    if not samples:
        raise DataError("the prepared data set has no training sample; see its report.json for what was rejected")
    tokens = 0
    for sample in samples:
        *_, frames, height, width = found.latent_shape(sample.width, sample.height, sample.num_frames)
        tokens += frames * height * width // PATCH_AREA
    of_step = config.global_batch_size * tokens / len(samples)
    budget = cast("int", sweep.budget.tokens)
    if budget < of_step:
        raise TrainError(f"budget.tokens is {budget:,}, and one step takes {of_step:,.0f}; give more")
    return int(budget / of_step)


def stops(sweep: Sweep, num_steps: int) -> list[int]:
    """Steps after which a trial reports: its quarters, and where the scheduler looks."""
    shares = {index / SLICES for index in range(1, SLICES + 1)}
    chosen = sweep.scheduler
    if chosen.name == "asha":
        share = chosen.grace
        while share < 1:
            shares.add(share)
            share *= chosen.reduction_factor
    if chosen.name == "pbt":
        shares |= {index * chosen.interval for index in range(1, math.ceil(1 / chosen.interval))}
    return sorted({math.ceil(share * num_steps - 1e-9) for share in shares})


def _saved_config(folder: Path) -> TrainConfig:
    try:
        return TrainConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise TrainError(f"what trial {shown(folder)} had saved is damaged ({error}); remove that folder") from error
