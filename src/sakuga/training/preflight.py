"""Before the first step: does this run learn what it is asked to, and will its file say so to others?

Each check stands for a failure that goes unnoticed elsewhere: the loss looks normal and nothing is learnt. The checks
work on the run's own trainer and leave it as they found it.

| check | catches |
|---|---|
| trained tensors are fp32 | bf16 adapters, whose small updates are rounded away |
| each gets a finite gradient, not all zero | attention without a backward (sage); blocks that are copied at every call, as DiffSynth's fp8 layers are, where the gradient lands on the copy |
| frozen weights stay | a layer that was left out of the freeze, or an optimizer that has them |
| a step changes what is trained, and that the output | an optimizer that holds other tensors; a LoRA that hangs on layers nobody calls |
| the file, read back strictly, gives the same output | keys that no loader knows, a scale that is lost |
| the step's memory is about as predicted | a run that dies at its longest clip after an hour |

Run: pytest tests/unit/test_training_preflight.py
"""  # noqa: E501  a table

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from sakuga.errors import LoraError, PreflightError
from sakuga.training import adapters
from sakuga.training.batches import Entry
from sakuga.training.memory import (
    allocated_bytes,
    compare_peak,
    longest_sample,
    reset_peak,
    step_memory,
)
from sakuga.training.module import MicroBatch
from sakuga.training.optimizers import build_optimizers
from sakuga.training.trainer import Trainer
from sakuga.wan.lora_file import fit_lora
from sakuga.wan.passport import LoraPassport

logger = logging.getLogger(__name__)

FILE_TOLERANCE = 0.1
"""Of the change of the output by the adapter: rounding to fp16 and bf16 products are 0.02 of it, a scale that is lost
0.5 and more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found; raised would it be otherwise."""

    num_trained: int
    """Parameters."""
    num_tensors: int
    effect: float
    """Mean absolute change of the output by one step, over the output's own."""
    file_error: float | None
    """Mean absolute difference of the output by the file, over the adapter's effect; None in a full fine-tuning."""
    peak_bytes: int | None
    """Of a step with one sample, the longest, on a GPU; None on a CPU."""
    predicted_bytes: int | None


def preflight(trainer: Trainer) -> Preflight:
    """Try a step and undo it. Raises PreflightError that names what would go wrong; all workers call it together."""
    _check_dtypes(trainer)
    with torch.random.fork_rng(devices=[]), step_memory(trainer.plan, trainer.model.card, trainer.module.device):
        torch.manual_seed(0)
        before = allocated_bytes(trainer.module.device)
        kept = {name: parameter.detach().clone() for name, parameter in trainer.trained.items()}
        try:
            return _tried(trainer, kept, allocated_bytes(trainer.module.device) - before)
        finally:
            _put_back(trainer, kept)


def _tried(trainer: Trainer, kept: dict[str, torch.Tensor], kept_bytes: int) -> Preflight:
    if trainer.config.trains_lora:
        _fill_adapters(trainer)
    frozen = {name: _print_of(p) for name, p in trainer.module.named_parameters() if not p.requires_grad}
    batches = _one_of_each_expert(trainer)
    device = trainer.module.device
    reset_peak(device)
    before = _output(trainer, batches)
    for batch in batches:
        (trainer.module(batch) * batch.share_B).sum().backward()
    trainer.world.sum_gradients(trainer.trained.values())
    peak = allocated_bytes(device, peak=True) - kept_bytes
    _check_gradients(trainer)
    optimizers = build_optimizers(trainer.trained, trainer.config.optimizer, lr=1e-2, weight_decay=0.0)
    values = {name: _local(parameter).clone() for name, parameter in trainer.trained.items()}
    held = allocated_bytes(device)
    for optimizer in optimizers:
        optimizer.step()
    peak += allocated_bytes(device) - held  # its state, which is there from the second step on
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    stuck = [name for name, parameter in trainer.trained.items() if torch.equal(_local(parameter), values[name])]
    _refuse(_on_all(trainer, stuck), "does not move in a step", "its optimizer holds other tensors")
    changed = [
        name
        for name, parameter in trainer.module.named_parameters()
        if name in frozen and _print_of(parameter) != frozen[name]
    ]
    _refuse(changed, "is frozen and changed all the same", "it is shared with a trained one, or an optimizer has it")
    after = _output(trainer, batches)
    effect = float((after - before).abs().mean() / before.abs().mean().clamp_min(1e-12))
    if effect == 0:
        raise PreflightError("a step changes the weights and not the output: what is trained is not what is called")
    file_error = None
    if trainer.config.trains_lora and not trainer.world.sharded:
        _put_back(trainer, kept)
        file_error = _check_file(trainer, batches)
    predicted = None
    if device.type == "cuda":
        plan = dataclasses.replace(trainer.plan, micro_batch=1, accumulates=len(batches) > 1)
        predicted = compare_peak(peak, plan, trainer.model.card)
    return Preflight(
        num_trained=sum(parameter.numel() for parameter in trainer.trained.values()),
        num_tensors=len(trainer.trained),
        effect=effect,
        file_error=file_error,
        peak_bytes=None if predicted is None else peak,
        predicted_bytes=predicted,
    )


def _check_dtypes(trainer: Trainer) -> None:
    coarse = [name for name, parameter in trainer.trained.items() if parameter.dtype is not torch.float32]
    _refuse(coarse, "is trained in fewer than 32 bits, where small updates are rounded away", "make it fp32")


def _check_gradients(trainer: Trainer) -> None:
    gradients = {name: parameter.grad for name, parameter in trainer.trained.items()}
    missing = [name for name, gradient in gradients.items() if gradient is None]
    _refuse(
        missing, "gets no gradient", "its layer is not called, or is called as a copy; train without quantized blocks"
    )
    found = {name: _local(gradient) for name, gradient in gradients.items() if gradient is not None}
    broken = [name for name, gradient in found.items() if not gradient.isfinite().all()]
    _refuse(broken, "gets a gradient that is not finite", "look at the data, or train on an fp32 base")
    zero = [name for name, gradient in found.items() if not gradient.any()]
    _refuse(
        _on_all(trainer, zero), "gets a gradient of zeros", "the attention kernel has no backward; take an exact one"
    )


def _on_all(trainer: Trainer, names: Sequence[str]) -> list[str]:
    """What every worker found: one that holds no part of a tensor has nothing to say of it."""
    everywhere = set.intersection(*(set(found) for found in trainer.world.gather(list(names))))
    return [name for name in names if name in everywhere]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's part of a tensor that FSDP has spread."""
    value = tensor.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def _check_file(trainer: Trainer, batches: Sequence[MicroBatch]) -> float:
    """Save adapters that do something, wipe them, read the file strictly, and compare what the model says."""
    off = _output(trainer, batches) if not trainer.config.start_lora_sha256 else None
    _fill_adapters(trainer)
    meant = _output(trainer, batches)
    experts = [(f"experts.{index}.", expert) for index, expert in enumerate(trainer.module.experts)]
    with tempfile.TemporaryDirectory() as folder:
        for start, expert in experts:
            own = {name.removeprefix(start): value for name, value in trainer.trained.items() if name.startswith(start)}
            if not own:
                continue
            path = Path(folder) / "lora.safetensors"
            adapters.save_lora(own, trainer.config.scale, path, LoraPassport())
            with torch.no_grad():
                for value in own.values():
                    value.zero_()
            try:
                adapters.fill(expert, fit_lora(path, adapters.plain_shapes(expert)), trainer.config)
            except LoraError as error:
                raise PreflightError(f"the run's own file cannot be read back: {error.message}") from error
    found = _output(trainer, batches)
    scale = meant.abs().mean() if off is None else (meant - off).abs().mean()
    file_error = float((found - meant).abs().mean() / scale.clamp_min(1e-12))
    if not file_error < FILE_TOLERANCE:
        raise PreflightError(
            f"the run's file gives another output than the run: {100 * file_error:.0f} % of the adapter's effect is "
            "lost; its scale or some of its tensors do not reach it"
        )
    return file_error


@torch.no_grad()
def _output(trainer: Trainer, batches: Sequence[MicroBatch]) -> torch.Tensor:
    """The velocities, all numbers of them."""
    return torch.cat([trainer.module(batch, raw=True).float().flatten() for batch in batches])


@torch.no_grad()
def _fill_adapters(trainer: Trainer) -> None:
    """With an adapter as strong as the weights beside it: one that does nothing yet hides what is lost, and the effect
    of a weak one is lost itself in the rounding of bf16 products.
    """
    dim, rank = trainer.module.forwards[0].dit.dim, trainer.config.rank
    for parameter in trainer.trained.values():
        _local(parameter).normal_(std=(dim * rank) ** -0.25)


def _one_of_each_expert(trainer: Trainer) -> list[MicroBatch]:
    """A sample at a noise level of each expert that is trained, the longest clip first: it needs the most memory."""
    batches = trainer.batches
    longest = longest_sample(batches)
    draw = batches.of_step(0, num_batches=1, index=0)[0][0].draw
    low, high = batches.sigma_range()
    sigmas = [0.5 * (low + high)]
    if batches.card.two_experts and trainer.config.expert is None:
        boundary = batches.card.boundary_ratio or 0.5
        sigmas = [0.5 * (boundary + 1), 0.5 * boundary]
    entries = [Entry(draw=draw, sample=longest, sigma=sigma, share=1.0) for sigma in sigmas]
    return [batches.micro_batch([entry]) for entry in entries]


def _print_of(parameter: torch.Tensor) -> tuple[float, int]:
    """Enough to see a change: the sum, and how often the tensor was written to."""
    value = _local(parameter)
    whole = value.dequantize() if hasattr(value, "dequantize") and type(value) is not torch.Tensor else value
    return float(whole.double().sum()), value._version


@torch.no_grad()
def _put_back(trainer: Trainer, kept: dict[str, torch.Tensor]) -> None:
    for name, parameter in trainer.trained.items():
        parameter.copy_(kept[name])
        parameter.grad = None


def _refuse(names: Sequence[str], what: str, cure: str) -> None:
    if names:
        rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise PreflightError(f"{names[0]}{rest} {what}: {cure}")
