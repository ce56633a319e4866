"""Bundles of a lane and the order of its ranks."""

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sakuga.errors import PlanError
from sakuga.farm import bundles
from sakuga.farm.bundles import REPLICA_CPUS, bundle_of_rank, lane_placement
from sakuga.parallel import ParallelPlan


def test_the_examples_of_the_module():
    assert doctest.testmod(bundles).failed == 0


@pytest.mark.parametrize("plan", [ParallelPlan(), ParallelPlan(cfg=2), ParallelPlan(cfg=2, ulysses=2, ring=2)])
def test_a_bundle_for_each_rank_and_the_replica_in_the_first(plan):
    placement = lane_placement(plan, gpus_per_rank=1, cpus_per_rank=2)
    assert len(placement.bundles) == plan.world_size
    assert placement.bundles[0] == {"CPU": 2 + REPLICA_CPUS, "GPU": 1}
    assert all(bundle == {"CPU": 2, "GPU": 1} for bundle in placement.bundles[1:])
    assert placement.replica_cpus <= placement.bundles[0]["CPU"]


def test_without_gpus_none_are_asked_for():
    assert lane_placement(ParallelPlan(ring=2), gpus_per_rank=0).bundles[1] == {"CPU": 1.0}


def test_a_lane_larger_than_a_node_is_packed_and_its_ulysses_groups_stay_whole():
    assert lane_placement(ParallelPlan(ulysses=4, ring=2), ranks_per_node=8).strategy == "STRICT_PACK"
    assert lane_placement(ParallelPlan(ulysses=4, ring=4), ranks_per_node=8).strategy == "PACK"
    for plan in (ParallelPlan(ulysses=16), ParallelPlan(ulysses=3, ring=4)):
        with pytest.raises(PlanError, match="would lie across nodes of 8 ranks; take a degree that divides 8"):
            lane_placement(plan, ranks_per_node=8)
    lane_placement(ParallelPlan(ulysses=3, ring=2), ranks_per_node=8)


def test_nonsense_is_refused():
    with pytest.raises(PlanError):
        lane_placement(ParallelPlan(), cpus_per_rank=0)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=16))
def test_ranks_of_a_node_are_neighbours_and_rank_0_is_the_replicas(nodes):
    order = bundle_of_rank(nodes)
    assert sorted(order) == list(range(len(nodes))) and order[0] == 0
    along = [nodes[index] for index in order]
    changes = sum(one != other for one, other in itertools.pairwise(along))
    assert changes == len(set(nodes)) - 1
