"""Memory plans: their spelling."""

import doctest

import pytest

from sakuga.errors import PlanError
from sakuga.wan import memory
from sakuga.wan.memory import MemoryPlan


def test_the_examples_of_the_module():
    assert doctest.testmod(memory).failed == 0


@pytest.mark.parametrize("text", ["resident", "components", "layers:4096", "disk"])
def test_a_plan_reads_what_it_prints(text):
    assert str(MemoryPlan.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer:4GB", "did you mean 'layers'"),
        ("layers", "layers:12GB"),
        ("disk:4GB", "belongs to layers"),
        ("layers:many", "no number of bytes"),
        ("layers:4XB", "no number of bytes"),
        ("layers:-4", "no number of bytes"),
    ],
)
def test_what_is_no_plan_is_refused(text, message):
    with pytest.raises(PlanError, match=message):
        MemoryPlan.parse(text)
