"""What a rank of a training world does in tests; runs in processes of `tests/ranks.py`."""

from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from sakuga.training.checkpoint import RunState, read_state
from sakuga.training.config import TrainConfig
from sakuga.training.heldout import held_out_loss
from sakuga.training.preflight import preflight
from sakuga.training.world import World
from sakuga.wan.passport import LoraPassport
from tiny_training import trainer_of


def train(
    folder: Path,
    config: TrainConfig,
    sequence: int,
    sharded: bool,
    num_steps: int,
    resume: str | None,
    save: str | None,
) -> tuple[list[float], dict[str, float], dict[str, torch.Tensor]]:
    """Losses of the steps, held-out loss at the end, trained weights (of this rank's shards only where sharded)."""
    world = World.join(sequence=sequence, sharded=sharded)
    trainer = trainer_of(folder, config, world, micro_batch_size=2)
    if resume is not None:
        trainer.restore(folder / resume, read_state(folder / resume, config))
    losses = [trainer.train_step().loss for _ in range(num_steps)]
    held_out = held_out_loss(trainer.module, trainer.batches, world, trainer.batches.prepared.of("test"))
    if save is not None:
        trainer.write(folder / save, RunState(step=trainer.step), LoraPassport())
    weights = {name: p.detach() for name, p in trainer.trained.items()} if not sharded else {}
    return losses, held_out, weights


def fly(folder: Path, config: TrainConfig, sequence: int, sharded: bool) -> tuple[float, bool]:
    """The effect that the pre-flight measures, and whether it left the weights as they were."""
    trainer = trainer_of(folder, config, World.join(sequence=sequence, sharded=sharded))
    before = {name: local(value).clone() for name, value in trainer.trained.items()}
    found = preflight(trainer)
    return found.effect, all(torch.equal(local(value), before[name]) for name, value in trainer.trained.items())


def local(tensor: torch.Tensor) -> torch.Tensor:
    value = tensor.detach()
    return value.to_local() if isinstance(value, DTensor) else value
