"""Which render goes next."""

import doctest
from dataclasses import replace

from sakuga.jobstore import ids, queue
from sakuga.jobstore.queue import MAX_WAIT_S, Candidate, choose
from sakuga.jobstore.schema import NEVER

PLAIN = Candidate(
    tenant="t", model="m", priority=1, due_at=NEVER, created_at=0.0, used_gpu_s=0.0
)  # fmt: skip
NOTHING = frozenset()


def test_the_examples_of_the_module():
    for module in (queue, ids):
        assert doctest.testmod(module).failed == 0


def test_nothing_waits():
    assert choose([], NOTHING, 0.0) is None


def test_a_higher_class_goes_before_all():
    urgent = replace(PLAIN, tenant="u", priority=2, created_at=9.0, used_gpu_s=1e6, model="n")
    assert choose([PLAIN, urgent], frozenset({"m"}), 10.0) is urgent


def test_inside_a_class_the_tenant_that_used_least_then_deadline_then_age():
    light = replace(PLAIN, tenant="u", created_at=9.0)
    heavy = replace(PLAIN, used_gpu_s=10.0)
    assert choose([heavy, light], NOTHING, 10.0) is light
    due = replace(PLAIN, tenant="u", created_at=9.0, due_at=20.0)
    assert choose([PLAIN, due], NOTHING, 10.0) is due
    older = replace(PLAIN, tenant="u", created_at=-1.0)
    assert choose([PLAIN, older], NOTHING, 10.0) is older


def test_what_is_loaded_goes_first_until_somebody_has_waited_long():
    other = replace(PLAIN, tenant="u", model="n", created_at=5.0)
    assert choose([PLAIN, other], frozenset({"n"}), 10.0) is other
    assert choose([PLAIN, other], frozenset({"n"}), MAX_WAIT_S + 1) is PLAIN
