"""The ranks of one render as a mesh of process groups, and the few exchanges that they need.

Groups of gloo take CPU tensors only, so CUDA tensors are staged through the host there: slow, but it lets two processes
share one GPU, which NCCL refuses.     Run: pytest tests/dist/test_sequence.py
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from sakuga.errors import PlanError, RankLostError
from sakuga.parallel.plan import ParallelPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One group of this rank: the ranks that share a piece of work with it."""

    ranks: tuple[int, ...]
    index: int
    """Of this rank among `ranks`."""
    holder: list[dist.ProcessGroup | None] = field(default_factory=lambda: [None])
    """The group in a list that `Mesh.close` empties: gloo's connections end with the last reference to it."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """None where this rank is alone. Raises RankLostError once the mesh is closed."""
        if not self.holder:
            raise RankLostError("this rank has left its world; start new ranks")
        return self.holder[0]

    @property
    def size(self) -> int:
        return len(self.ranks)

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """Part i of the first dimension, (size, ...), goes to rank i; what comes back stands by source."""
        if self.group is None:
            return x
        return _AllToAll.apply(x, self)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, of one shape."""
        if self.group is None:
            return [x]
        sent = self._stage(x)
        parts = [torch.empty_like(sent) for _ in self.ranks]
        dist.all_gather(parts, sent, group=self.group)
        return [part.to(x.device) for part in parts]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element by element, over all ranks."""
        if self.group is None:
            return values
        total = self._stage(values).clone()
        dist.all_reduce(total, group=self.group)
        return total.to(values.device)

    def pass_on(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Give tensors to the next rank of the ring and take those of the one before."""
        if self.group is None:
            return tensors
        after, before = (self.ranks[(self.index + step) % self.size] for step in (1, -1))
        sent = [self._stage(x) for x in tensors]
        taken = [torch.empty_like(x) for x in sent]
        operations = [dist.P2POp(dist.isend, x, after, self.group) for x in sent]
        operations += [dist.P2POp(dist.irecv, x, before, self.group) for x in taken]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        return [x.to(tensors[0].device) for x in taken]

    def _stage(self, x: torch.Tensor) -> torch.Tensor:
        """Where this group's backend can read it."""
        on_host = dist.get_backend(self.group) == "gloo"
        return (x.cpu() if on_host else x).contiguous()


class _AllToAll(torch.autograd.Function):
    """With equal parts the exchange is its own transpose, so gradients go the same way back."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, axis: Axis) -> torch.Tensor:
        ctx.axis = axis
        sent = axis._stage(x)
        taken = torch.empty_like(sent)
        dist.all_to_all_single(taken, sent, group=axis.group)
        return taken.to(x.device)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _AllToAll.apply(gradients[0], ctx.axis), None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A rank's place in a plan, with its group along each axis."""

    plan: ParallelPlan
    rank: int
    cfg: Axis
    ulysses: Axis
    ring: Axis
    sequence: Axis

    @classmethod
    def alone(cls) -> Mesh:
        """The plan of one rank, for which torch.distributed is not needed."""
        axis = Axis(ranks=(0,), index=0)
        return cls(plan=ParallelPlan(), rank=0, cfg=axis, ulysses=axis, ring=axis, sequence=axis)

    @classmethod
    def create(cls, plan: ParallelPlan) -> Mesh:
        """Make the groups; every rank of the default group calls it with the same plan.

        On GPUs, begin torch.distributed with the backend "cpu:gloo,cuda:nccl": states and errors travel as CPU tensors.
        Raises PlanError when torch.distributed has another number of ranks.
        """
        if plan.world_size == 1:
            return cls.alone()
        if dist.get_world_size() != plan.world_size:
            raise PlanError(f"{plan} is for {plan.world_size} ranks and {dist.get_world_size()} are there")
        rank = dist.get_rank()
        axes = {axis: _axis(plan, axis, rank) for axis in ("cfg", "ulysses", "ring", "sequence")}
        return cls(plan=plan, rank=rank, **axes)

    def close(self) -> None:
        """Leave: what the others exchange with this rank ends in an error there instead of a wait."""
        for axis in (self.cfg, self.ulysses, self.ring, self.sequence):
            axis.holder.clear()
        dist.destroy_process_group()
        gc.collect()


def _axis(plan: ParallelPlan, name: str, rank: int) -> Axis:
    """Every rank makes every group, also those that it is not in: torch.distributed wants it so."""
    mine: Axis | None = None
    for ranks in plan.ranks(name):
        group = dist.new_group(ranks) if len(ranks) > 1 else None
        if rank in ranks:
            mine = Axis(ranks=tuple(ranks), index=ranks.index(rank), holder=[group])
    assert mine is not None, "the groups of an axis cover all ranks"
    return mine
