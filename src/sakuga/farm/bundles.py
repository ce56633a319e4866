"""Where the ranks of a lane go: placement-group bundles of a parallel plan, and which rank sits in which bundle.

Pure arithmetic. A lane is one Serve replica; its placement group has a bundle for each rank, and the replica shares the
first with rank 0. Ranks are counted ulysses first, as those exchange most, so that neighbours in the plan should be
neighbours in the machine.     Run: pytest tests/unit/test_bundles.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sakuga.errors import PlanError
from sakuga.parallel.plan import ParallelPlan

REPLICA_CPUS = 0.5
"""The replica itself only asks and tells; its ranks compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlacement:
    """What Serve is asked for."""

    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    """"STRICT_PACK" where a node holds the whole lane, else "PACK"."""
    replica_cpus: float = REPLICA_CPUS


def lane_placement(
    plan: ParallelPlan, *, gpus_per_rank: float = 1.0, cpus_per_rank: float = 1.0, ranks_per_node: int = 8
) -> LanePlacement:
    """Bundles for every rank of a plan.

    Raises PlanError for a plan whose ulysses groups would lie across nodes: they exchange twice a block.

    >>> placement = lane_placement(ParallelPlan(ulysses=2))
    >>> placement.bundles, placement.strategy
    (({'CPU': 1.5, 'GPU': 1.0}, {'CPU': 1.0, 'GPU': 1.0}), 'STRICT_PACK')
    """
    if gpus_per_rank < 0 or cpus_per_rank <= 0 or ranks_per_node < 1:
        raise PlanError("a rank needs a share of a CPU, no negative number of GPUs, and a node at least one rank")
    if plan.ulysses > ranks_per_node or (plan.world_size > ranks_per_node and ranks_per_node % plan.ulysses):
        raise PlanError(
            f"ulysses {plan.ulysses} would lie across nodes of {ranks_per_node} ranks; take a degree that divides "
            f"{ranks_per_node}, and ring across nodes"
        )
    of_rank = {"CPU": cpus_per_rank} | ({"GPU": gpus_per_rank} if gpus_per_rank else {})
    first = of_rank | {"CPU": cpus_per_rank + REPLICA_CPUS}
    strategy = "STRICT_PACK" if plan.world_size <= ranks_per_node else "PACK"
    return LanePlacement(bundles=(first, *(dict(of_rank) for _ in range(plan.world_size - 1))), strategy=strategy)


def bundle_of_rank(nodes_of_bundles: Sequence[str]) -> list[int]:
    """The bundle of each rank, so that ranks of a node are neighbours and rank 0 sits with the replica, in bundle 0.

    PACK puts bundles on few nodes, but in any order.

    >>> bundle_of_rank(["b", "a", "b", "a"])
    [0, 2, 1, 3]
    """
    first_seen: dict[str, int] = {}
    for index, node in enumerate(nodes_of_bundles):
        first_seen.setdefault(node, index)
    return sorted(range(len(nodes_of_bundles)), key=lambda index: (first_seen[nodes_of_bundles[index]], index))
