"""Everything that a step sees follows from the seed and a sample's number."""

import doctest

import pytest

from sakuga.training import order
from sakuga.training.order import draws_of_step, rounds


def draw(step: int, **changes):
    given = {"batch_size": 4, "num_samples": 10, "seed": 3, "text_dropout": 0.25} | changes
    return draws_of_step(step, **given)


def test_an_epoch_sees_every_sample_once():
    seen = [found.sample for step in range(5) for found in draw(step)]
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_step_is_the_same_when_it_is_drawn_again_and_another_with_another_seed():
    assert draw(7) == draw(7)
    assert draw(7) != draw(7, seed=4)
    assert draw(7)[0].noise((2, 3), seed=3).equal(draw(7)[0].noise((2, 3), seed=3))
    assert not draw(7)[0].noise((2, 3), seed=3).equal(draw(7)[1].noise((2, 3), seed=3))


def test_quantiles_lie_one_in_each_part():
    for step in range(20):
        assert sorted(int(found.quantile * 4) for found in draw(step)) == [0, 1, 2, 3]


def test_texts_are_dropped_as_often_as_asked():
    dropped = [found.drops_text for step in range(300) for found in draw(step)]
    assert 0.2 < sum(dropped) / len(dropped) < 0.3
    assert not any(found.drops_text for step in range(20) for found in draw(step, text_dropout=0.0))


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
def test_rounds_hold_every_item_once_and_one_kind_at_a_time(num_workers):
    items = list(range(23))
    found = rounds(items, lambda x: (x % 2, x % 3), num_workers=num_workers, limit=4)
    assert sorted(item for turn in found for batch in turn for item in batch) == items
    for turn in found:
        assert len(turn) == num_workers
        assert len({item % 2 for batch in turn for item in batch}) == 1
        for batch in turn:
            assert len(batch) <= 4
            assert len({(item % 2, item % 3) for item in batch}) <= 1


def test_examples():
    assert doctest.testmod(order).failed == 0
