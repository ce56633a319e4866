"""Tokens and attention split over ranks give what one process gives, for any length and every plan."""

import pytest
import torch

import rank_work
from sakuga.parallel import ParallelPlan
from sakuga.wan.attention import sdpa

pytestmark = pytest.mark.dist

PLANS = [
    ParallelPlan(ulysses=2),
    ParallelPlan(ring=2),
    ParallelPlan(ulysses=4),
    ParallelPlan(ring=4),
    ParallelPlan(ulysses=2, ring=2),
    ParallelPlan(cfg=2, ulysses=2),
    ParallelPlan(cfg=2, ring=2),
]
LENGTHS = [1, 3, 8, 13, 64]
"""Shorter than the number of ranks, with an empty last shard (3 over 2 x 2), divisible, and not."""


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_attention_over_shards_is_attention(plan, world):
    for length in LENGTHS:
        expected = sdpa(*rank_work.qkv(length, 4), 4)
        for got in world(plan.world_size).run(rank_work.split_attention, plan, length, 4):
            assert (got - expected).abs().max() < 1e-6, length


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_parts_are_equal_and_come_together_again(plan, world):
    for length in LENGTHS:
        x = torch.arange(length * 3, dtype=torch.float32).view(1, length, 3)
        answers = world(plan.world_size).run(rank_work.split_and_gather, plan, length)
        assert all(torch.equal(whole, x) for whole, _ in answers)
        assert len({tuple(shape) for _, shape in answers}) == 1


@pytest.mark.parametrize("length", [8, 13])
def test_ulysses_has_the_gradient_of_one_process(length, world):
    expected = rank_work.whole_gradient(length, 4)
    for gradients in world(2).run(rank_work.split_gradient, ParallelPlan(ulysses=2), length, 4):
        for got, wanted in zip(gradients, expected, strict=True):
            assert (got - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ulysses_is_that_of_yunchang_where_lengths_divide(num_ranks, world):
    for ours, theirs in world(num_ranks).run(rank_work.yunchangs_ulysses, ParallelPlan(ulysses=num_ranks), 16, 4):
        assert (ours - theirs).abs().max() < 1e-6


def test_axes_hold_the_right_ranks(world):
    answers = world(4).run(rank_work.exchange_of_branches, ParallelPlan(cfg=2, ulysses=2))
    assert answers == [([0.0, 2.0], 1.0), ([1.0, 3.0], 1.0), ([0.0, 2.0], 5.0), ([1.0, 3.0], 5.0)]


def test_a_plan_for_another_number_of_ranks_is_refused(world):
    for text in world(2).run(rank_work.wrong_world, ParallelPlan(ring=3)):
        assert text == "cfg 1 x ulysses 1 x ring 3 is for 3 ranks and 2 are there"


def test_the_kernels_log_sum_exp(world):
    """yunchang's is all zeros on a CPU, which makes its ring wrong there."""
    assert world(2).run(rank_work.log_sum_exp, 17)[0] < 1e-5
