"""A run in one worker: load, train step by step, evaluate, save, go on where it stopped.

`Trainer` does one step when it is asked to; `training/loop.py` asks. It knows neither Ray nor folders of runs.

Run: pytest tests/unit/test_training_loop.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sakuga.errors import NumericsError, TrainError
from sakuga.recipe.values import EXPERTS
from sakuga.training import adapters
from sakuga.training.batches import Batches
from sakuga.training.checkpoint import RunState, Tensors, read_tensors, write_checkpoint
from sakuga.training.config import TrainConfig
from sakuga.training.distill import Distillation
from sakuga.training.memory import fullest_plan, step_memory
from sakuga.training.module import MicroBatch, TrainingModule
from sakuga.training.objective import PATCH_AREA
from sakuga.training.optimizers import Ema, build_optimizers, lr_factor
from sakuga.training.states import load_optimizer_state, load_whole_state, optimizer_state, whole_state
from sakuga.training.world import World
from sakuga.wan.loading import LoadedModel
from sakuga.wan.passport import LoraPassport

OPTIONAL_BRANCHES = {"img_emb.": "clip_feature_LD", "ref_conv.": "reference_latents_CThw",
                     "control_adapter.": "control_camera_CThw"}  # fmt: skip
"""Parts of a DiT that a full fine-tuning leaves alone when the data has nothing for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One step, as it is logged; the same on every worker."""

    step: int
    """Steps done."""
    loss: float
    grad_norm: float
    lr: float
    num_tokens: int
    """Over all workers."""


class Trainer:
    """Module, optimizers and mean of one run."""

    def __init__(
        self,
        model: LoadedModel,
        batches: Batches,
        config: TrainConfig,
        world: World,
        *,
        start_lora: Path | None = None,
        style_lora: Path | None = None,
    ) -> None:
        """Raises TrainError or LoraError for settings that do not fit the model, PlanError for workers that do not."""
        config.check_card(model.card)
        self.model, self.batches, self.config, self.world = model, batches, config, world
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # every worker begins with the same adapter
            for expert in self._trained_experts():
                if config.trains_lora:
                    adapters.add_lora(expert, config, start_lora)
                    if style_lora is not None:
                        adapters.add_style(expert, style_lora)
                else:
                    adapters.make_trainable(expert)
                    self._freeze_unused(expert)
        self.module = TrainingModule(
            model.pipe, checkpointing=config.checkpointing, compiled=config.compile, device=batches.device
        )
        self.module.to(batches.device)
        self.distillation: Distillation | None = None
        if config.mode == "distill":
            self.distillation = Distillation(
                self.module, config, model.card, world, batches.empty_text(), has_style=style_lora is not None
            )
        if world.sharded and config.optimizer == "muon":
            raise TrainError("muon needs whole matrices, which FSDP splits; take adamw")
        world.spread(self.module)
        self.trained = self.module.trained()
        self.optimizers = build_optimizers(
            self.trained, config.optimizer, lr=config.lr, weight_decay=config.weight_decay
        )
        self.ema = None if config.ema_decay is None else Ema(self.module, config.ema_decay)
        self.plan = fullest_plan(batches, world)
        self.step = 0

    def _trained_experts(self) -> list[torch.nn.Module]:
        experts = self.model.experts
        if self.config.expert is None:
            return list(experts)
        return [experts[EXPERTS.index(self.config.expert)]]

    def _freeze_unused(self, expert: torch.nn.Module) -> None:
        there = self.batches.video(self.batches.samples[0])
        for name, parameter in expert.named_parameters():
            needs = next((tensor for start, tensor in OPTIONAL_BRANCHES.items() if name.startswith(start)), None)
            if needs is not None and needs not in there:
                parameter.requires_grad_(False)

    def train_step(self) -> StepReport:
        """The next step.

        Raises NumericsError, naming the samples, before anything non-finite is learnt, and MemoryLimitError when the
        device is full.
        """
        with step_memory(self.plan, self.model.card, self.batches.device):
            return self._train_step()

    def _train_step(self) -> StepReport:
        config, world = self.config, self.world
        micro_batches = self.batches.of_step(
            self.step, num_batches=world.num_batches, index=world.batch_index, fill=world.sharded
        )
        loss, num_tokens = torch.zeros((), device=self.module.device), 0
        suspects: list[str] = []
        for entries in micro_batches:
            for batch in self._to_learn(self.batches.micro_batch(entries)):
                errors_B = self.module(batch)
                part = (errors_B * batch.share_B).sum()
                # FSDP takes the mean of all workers' gradients where the sum is wanted.
                (part * world.size if world.sharded else part).backward()
                loss += part.detach()
                num_tokens += batch.latents_BCThw[:, 0].numel() // PATCH_AREA
                suspects += [e.sample.name for e, error in zip(entries, errors_B, strict=True) if not error.isfinite()]
        totals = world.sum(torch.stack([loss, torch.tensor(float(num_tokens), device=loss.device)]))
        world.sum_gradients(self.trained.values())
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), config.max_grad_norm))
        if not math.isfinite(totals[0]) or not math.isfinite(norm):
            raise self._diverged(suspects or [e.sample.name for entries in micro_batches for e in entries])
        lr = config.lr * lr_factor(
            self.step, schedule=config.schedule, num_steps=config.num_steps, warmup_steps=config.warmup_steps
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                # torchao's optimizer keeps its rate as a tensor, that its compiled step can read it anew.
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.module, self.step)
        self.step += 1
        shared = world.mesh.sequence.size  # workers that counted the same tokens
        return StepReport(
            step=self.step, loss=float(totals[0]), grad_norm=norm, lr=lr, num_tokens=int(totals[1]) // shared
        )

    def _to_learn(self, batch: MicroBatch) -> Iterable[MicroBatch]:
        if self.distillation is None:
            return [batch]
        return self.distillation.of_step(batch, self.step, self.averaged)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the module has the running mean of its weights, where there is one."""
        if self.ema is not None:
            self.ema.swap(self.module)
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.swap(self.module)

    def _diverged(self, suspects: list[str]) -> NumericsError:
        names = sorted({name for found in self.world.gather(suspects) for name in found})
        return NumericsError(
            f"the loss of step {self.step + 1} is not finite, at {', '.join(names[:3])}; the last checkpoint is good: "
            "lower lr, or look at these samples"
        )

    def write(self, folder: Path, state: RunState, passport: LoraPassport) -> None:
        """Write a checkpoint with its result; every worker calls it, the first one writes. Raises OutputError."""
        sharded = self.world.sharded
        trained = whole_state(self.module, self.trained, sharded=sharded)
        optimizers = [optimizer_state(self.module, optimizer, sharded=sharded) for optimizer in self.optimizers]
        with self.averaged():
            mean = None if self.ema is None else whole_state(self.module, self.trained, sharded=sharded)
            result = whole_state(self.module, None, sharded=sharded) if self.config.mode == "full" else mean or trained
        if self.world.is_first:
            write_checkpoint(folder, self.config, state, Tensors(trained=trained, ema=mean, optimizers=optimizers))
            self._export(folder, result, passport)

    def _export(self, folder: Path, result: Mapping[str, torch.Tensor], passport: LoraPassport) -> None:
        num_experts = len(self.module.experts)
        for index, expert in enumerate(EXPERTS[:num_experts]):
            start = f"experts.{index}."
            own = {name.removeprefix(start): value for name, value in result.items() if name.startswith(start)}
            suffix = f"_{expert}" if num_experts > 1 else ""
            if self.config.mode == "full":
                adapters.save_weights(own, folder / f"model{suffix}.safetensors")
            elif own:
                named = dataclasses.replace(passport, expert=expert if num_experts > 1 else None)
                adapters.save_lora(own, self.config.scale, folder / f"lora{suffix}.safetensors", named)

    def restore(self, folder: Path, state: RunState) -> None:
        """Go on from a checkpoint. Raises TrainError when it is damaged or does not fit."""
        tensors, sharded = read_tensors(folder), self.world.sharded
        unknown = set(self.trained) ^ set(tensors.trained)
        if unknown:
            raise TrainError(f"checkpoint {folder} does not fit the run: {min(unknown)} has no partner; start anew")
        if self.ema is not None and tensors.ema is not None:
            load_whole_state(self.module, tensors.ema, sharded=sharded)
            self.ema.reset(self.module)
        load_whole_state(self.module, tensors.trained, sharded=sharded)
        for optimizer, saved in zip(self.optimizers, tensors.optimizers, strict=True):
            load_optimizer_state(self.module, optimizer, saved, sharded=sharded)
        self.step = state.step
