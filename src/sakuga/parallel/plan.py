"""Parallel plans: how many ranks share one render, and which part of the work each of them has.

Three axes. *cfg*: one rank runs the prompt, the other the negative prompt; nearly free. *ulysses*: ranks split the
tokens, and inside attention the heads (Jacobs et al. 2023, DeepSpeed-Ulysses); two exchanges a block, so inside a node.
*ring*: ranks split the tokens and pass keys and values round (Liu et al. 2023, ring attention); any number of heads,
and slower links. A plan changes no pixel beyond rounding, so it is no part of a recipe.

Pure arithmetic, no torch.     Run: pytest tests/unit/test_plan.py
"""

from dataclasses import dataclass

from sakuga.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """Degrees of the three axes; ranks are counted ulysses first, then ring, then cfg."""

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1

    def __post_init__(self) -> None:
        for axis in ("cfg", "ulysses", "ring"):
            degree = getattr(self, axis)
            if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
                raise PlanError(f"{axis} is {degree!r}; it must be a whole number from 1")
        if self.cfg > 2:
            raise PlanError(f"cfg is {self.cfg}; guidance has two branches, so it is 1 or 2")

    def __str__(self) -> str:
        return f"cfg {self.cfg} x ulysses {self.ulysses} x ring {self.ring}"

    @property
    def world_size(self) -> int:
        return self.cfg * self.ulysses * self.ring

    @property
    def sequence_degree(self) -> int:
        """Ranks that share the tokens of one branch."""
        return self.ulysses * self.ring

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(cfg, ring, ulysses) of a rank.

        >>> ParallelPlan(cfg=2, ulysses=2, ring=2).coordinates(5)
        (1, 0, 1)
        """
        return rank // self.sequence_degree, rank // self.ulysses % self.ring, rank % self.ulysses

    def ranks(self, axis: str) -> list[list[int]]:
        """Groups of ranks that differ in one axis only, or in both of the "sequence".

        >>> ParallelPlan(cfg=2, ulysses=2).ranks("cfg"), ParallelPlan(cfg=2, ulysses=2).ranks("ulysses")
        ([[0, 2], [1, 3]], [[0, 1], [2, 3]])
        """
        axes = {"cfg": (0,), "ring": (1,), "ulysses": (2,), "sequence": (1, 2)}[axis]
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            fixed = tuple(place for index, place in enumerate(self.coordinates(rank)) if index not in axes)
            groups.setdefault(fixed, []).append(rank)
        return list(groups.values())

    def check(self, *, num_heads: int, guided: bool = True) -> None:
        """Raises PlanError, with the nearest plan that works, where heads or branches do not divide."""
        problem = None
        if num_heads % self.ulysses:
            problem = f"ulysses {self.ulysses} does not divide the model's {num_heads} heads"
        elif self.cfg == 2 and not guided:
            problem = "cfg 2 splits two branches, and with guidance_scale 1 there is one"
        if problem is not None:
            nearest = legal_plans(self.world_size, num_heads=num_heads, guided=guided)[0]
            raise PlanError(f"{problem}; take {nearest}")


def legal_plans(world_size: int, *, num_heads: int, guided: bool = True) -> list[ParallelPlan]:
    """Plans for exactly so many ranks, best first: cfg, then ulysses, then ring.

    The order that SGLang, vLLM-Omni and LightX2V arrived at for Wan: the branches exchange one tensor a step, Ulysses
    two a block, a ring one for each of its ranks and blocks.

    >>> [str(plan) for plan in legal_plans(4, num_heads=12)][:2]
    ['cfg 2 x ulysses 2 x ring 1', 'cfg 2 x ulysses 1 x ring 2']
    """
    plans = [
        ParallelPlan(cfg=cfg, ulysses=ulysses, ring=world_size // cfg // ulysses)
        for cfg in ((2, 1) if guided else (1,))
        if world_size % cfg == 0
        for ulysses in range(world_size // cfg, 0, -1)
        if (world_size // cfg) % ulysses == 0 and num_heads % ulysses == 0
    ]
    return plans


def shard_lengths(length: int, num_shards: int) -> list[int]:
    """Tokens of each shard: equal parts, the end shorter, by as much as is lacking.

    >>> shard_lengths(10, 4), shard_lengths(2, 4)
    ([3, 3, 3, 1], [1, 1, 0, 0])
    """
    size = -(-length // num_shards)
    return [max(0, min(size, length - size * index)) for index in range(num_shards)]
