"""The workers of a run: which of them share a sample, which take different ones, and how their gradients meet.

`sequence` neighbours share each sample's tokens by Ulysses; the groups of them split the batch. With `sharded`, weights
are spread over all workers by FSDP2: block by block, then the module around them, since the walk over the blocks is
ours and `dit.forward` is never called. Else every worker holds all weights, and one sum a step joins the gradients.

Run: pytest tests/dist/test_training_world.py
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from sakuga.errors import PlanError
from sakuga.parallel.mesh import Axis, Mesh
from sakuga.parallel.plan import ParallelPlan
from sakuga.training.module import TrainingModule

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One worker's place among all."""

    rank: int = 0
    size: int = 1
    mesh: Mesh = field(default_factory=Mesh.alone)
    """Of the workers that share a sample."""
    sharded: bool = False

    @classmethod
    def join(cls, *, sequence: int = 1, sharded: bool = False) -> World:
        """Of torch.distributed's default group, which every worker has begun; every worker calls it.

        Raises PlanError when the workers cannot be split into groups of `sequence`.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            if sequence > 1:
                raise PlanError(f"a sequence over {sequence} workers needs as many; this run has one")
            return cls(sharded=sharded and dist.is_initialized())
        rank, size = dist.get_rank(), dist.get_world_size()
        if size % sequence:
            raise PlanError(f"{size} workers cannot be split into groups of {sequence} that share a sequence")
        return cls(rank=rank, size=size, mesh=_sequence_mesh(rank, size, sequence), sharded=sharded)

    @property
    def num_batches(self) -> int:
        """How many micro-batches are worked on at a time."""
        return self.size // self.mesh.sequence.size

    @property
    def batch_index(self) -> int:
        """Which of them is this worker's."""
        return self.rank // self.mesh.sequence.size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all workers."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Every worker holds the gradient of its part; all get that of the whole step. FSDP has summed its own."""
        if self.size == 1 or self.sharded:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:  # a worker without a micro-batch in this step
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, item: Item) -> list[Item]:
        """One small object of every worker."""
        if self.size == 1:
            return [item]
        found: list[Item | None] = [None] * self.size
        dist.all_gather_object(found, item)
        return cast("list[Item]", found)

    def spread(self, module: TrainingModule) -> None:
        """Give the module its place: the mesh of its tokens, and its weights to FSDP2 where they are sharded."""
        module.mesh = self.mesh
        if self.sharded and self.size > 1:
            from torch.distributed.fsdp import fully_shard

            for expert in module.experts:
                for block in cast("Sequence[torch.nn.Module]", expert.blocks):
                    fully_shard(block)
            fully_shard(module)  # with the VACE branches, whose projections are called outside their blocks


def _sequence_mesh(rank: int, size: int, degree: int) -> Mesh:
    """Neighbours in groups of `degree`; every worker makes every group, as torch.distributed wants it."""
    if degree == 1:
        return Mesh.alone()
    mine: Axis | None = None
    for first in range(0, size, degree):
        ranks = list(range(first, first + degree))
        group = dist.new_group(ranks)
        if rank in ranks:
            mine = Axis(ranks=tuple(ranks), index=ranks.index(rank), holder=[group])
    assert mine is not None, "the groups cover all workers"
    alone = Axis(ranks=(rank,), index=0)
    return Mesh(plan=ParallelPlan(ulysses=degree), rank=mine.index, cfg=alone, ulysses=mine, ring=alone, sequence=mine)
