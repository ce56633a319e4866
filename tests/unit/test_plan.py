"""Parallel plans: which rank does what, and which plan is offered when one does not fit."""

import doctest

import pytest

from sakuga.errors import PlanError
from sakuga.parallel import ParallelPlan, legal_plans, plan
from sakuga.parallel.plan import shard_lengths


def test_the_examples_of_the_module():
    assert doctest.testmod(plan).failed == 0


@pytest.mark.parametrize("degrees", [(1, 1, 1), (2, 1, 1), (1, 4, 1), (2, 2, 3)])
def test_groups_of_an_axis_cover_every_rank_once(degrees):
    wanted = ParallelPlan(cfg=degrees[0], ulysses=degrees[1], ring=degrees[2])
    places = [wanted.coordinates(rank) for rank in range(wanted.world_size)]
    assert len(set(places)) == wanted.world_size
    sizes = {"cfg": wanted.cfg, "ulysses": wanted.ulysses, "ring": wanted.ring, "sequence": wanted.sequence_degree}
    for axis, size in sizes.items():
        groups = wanted.ranks(axis)
        assert sorted(rank for group in groups for rank in group) == list(range(wanted.world_size))
        assert {len(group) for group in groups} == {size}


def test_neighbours_of_a_ulysses_group_are_neighbouring_ranks():
    """They exchange most, so they should share a node."""
    assert ParallelPlan(cfg=2, ulysses=4, ring=2).ranks("ulysses")[0] == [0, 1, 2, 3]


def test_heads_that_do_not_divide_name_the_nearest_plan():
    with pytest.raises(
        PlanError, match=r"ulysses 8 does not divide the model's 12 heads; take cfg 2 x ulysses 4 x ring 1"
    ):
        ParallelPlan(ulysses=8).check(num_heads=12)
    ParallelPlan(ulysses=8).check(num_heads=40)


def test_cfg_needs_two_branches():
    with pytest.raises(PlanError, match="there is one; take cfg 1 x ulysses 4 x ring 1"):
        ParallelPlan(cfg=2, ulysses=2).check(num_heads=12, guided=False)
    ParallelPlan(cfg=2, ulysses=2).check(num_heads=12)


@pytest.mark.parametrize(("axis", "degree"), [("cfg", 3), ("cfg", 0), ("ulysses", -1), ("ring", True), ("ring", 1.5)])
def test_degrees_out_of_range(axis, degree):
    with pytest.raises(PlanError, match=axis):
        ParallelPlan(**{axis: degree})


@pytest.mark.parametrize("world_size", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("num_heads", [4, 12, 40])
def test_there_is_always_a_plan_and_it_is_legal(world_size, num_heads):
    for guided in (True, False):
        plans = legal_plans(world_size, num_heads=num_heads, guided=guided)
        assert plans
        for each in plans:
            assert each.world_size == world_size
            each.check(num_heads=num_heads, guided=guided)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_shards_hold_all_tokens(num_shards):
    for length in range(1, 20):
        lengths = shard_lengths(length, num_shards)
        assert sum(lengths) == length
        assert lengths == sorted(lengths, reverse=True)
        assert len(lengths) == num_shards
