"""Does a step fit? Its bytes as predicted: against the device before a model is loaded, and against what was measured.

Run: pytest tests/unit/test_training_memory.py
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from sakuga.cost.devices import RESERVED_SHARE, usable_bytes
from sakuga.cost.fits import gigabytes
from sakuga.cost.training import TrainPlan, advise_training, leaner, train_bytes
from sakuga.errors import MemoryLimitError
from sakuga.training.batches import Batches
from sakuga.training.prepared import PreparedSample
from sakuga.training.world import World
from sakuga.wan.device import memory_bytes, memory_of

if TYPE_CHECKING:
    from sakuga.wan.cards import ModelCard

logger = logging.getLogger(__name__)

TOLERANCE = 0.1
"""Of a prediction; what is farther off is worth a look."""


def fullest_plan(batches: Batches, world: World) -> TrainPlan:
    """The micro-batch of a run that needs the most memory: of its longest sample, as many as may come together."""
    config, longest = batches.config, longest_sample(batches)
    return TrainPlan(
        settings=config,
        width=longest.width,
        height=longest.height,
        num_frames=longest.num_frames,
        micro_batch=min(batches.micro_batch_size, -(-config.global_batch_size // world.num_batches)),
        num_gpus=world.size,
        fsdp=world.sharded and world.size > 1,
        accumulates=config.global_batch_size > world.num_batches,
        ulysses=world.mesh.sequence.size,
        norms_fp32=batches.device.type == "cuda",
    )


def longest_sample(batches: Batches) -> PreparedSample:
    return max(batches.samples, key=lambda sample: sample.width * sample.height * sample.num_frames)


def check_step_fits(plan: TrainPlan, card: ModelCard, device: torch.device) -> None:
    """Raises MemoryLimitError, with what would fit, for a step that a CUDA device or its machine does not hold."""
    if device.type != "cuda":
        return
    parts, memory = train_bytes(plan, card), memory_bytes(device)
    what = f"a step of {plan.micro_batch} x {plan.width}x{plan.height} and {plan.num_frames} frames of {card.name}"
    if parts.peak > usable_bytes(memory):
        raise MemoryLimitError(
            f"{what} needs {gigabytes(parts.peak)}; {device} has {gigabytes(memory)}, of which a run gets "
            f"{1 - RESERVED_SHARE:.0%}; {advise_training(plan, card, memory)}"
        )
    # Ray lets the workers of a machine see each other's GPUs.
    here = min(plan.num_gpus, max(1, torch.cuda.device_count()))
    host = memory_bytes(torch.device("cpu"))
    if here * parts.host > usable_bytes(host):
        raise MemoryLimitError(
            f"{what} keeps {gigabytes(here * parts.host)} of checkpoints on the host, which has {gigabytes(host)}; "
            "take checkpointing recompute, a smaller micro-batch or fewer frames"
        )


def allocated_bytes(device: torch.device, *, peak: bool = False) -> int:
    """Of a CUDA device by this process, now or at most since `reset_peak`; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def compare_peak(measured: int, plan: TrainPlan, card: ModelCard) -> int:
    """The prediction; a warning in the log where the measurement is far from it."""
    predicted = train_bytes(plan, card).peak
    if abs(measured - predicted) > TOLERANCE * predicted:
        logger.warning(
            "a step took %s of device memory where %s were predicted; what `sakuga estimate --train` says of this run "
            "is off by as much",
            gigabytes(measured),
            gigabytes(predicted),
        )
    return predicted


def step_memory(plan: TrainPlan, card: ModelCard, device: torch.device) -> AbstractContextManager[None]:
    """Inside: a step that runs out of device memory is a MemoryLimitError with the next step to take."""
    return memory_of(device, f"a step of {card.name}", leaner(plan))
