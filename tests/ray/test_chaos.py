"""A short chaos run: every kind of disturbance once, and nothing lost. `make chaos` is the long one."""

from dataclasses import asdict
from itertools import pairwise

import pytest

import chaos
from chaos_farm import WEIGHTS, plan

pytestmark = pytest.mark.ray

SECONDS, SEED = 12.0, 7


def test_the_plan_of_a_seed_has_every_kind_and_is_always_the_same():
    planned = plan(SEED, 60.0)
    assert planned == plan(SEED, 60.0) != plan(SEED + 1, 60.0)
    assert {each.kind for each in plan(SEED, SECONDS)} == set(WEIGHTS)
    assert all(0 < one.at_s < two.at_s < 60.0 for one, two in pairwise(planned))


def test_whatever_dies_no_job_is_lost_and_none_is_published_twice(ray_cluster, tmp_path):
    figures = chaos.run(tmp_path, seconds=SECONDS, seed=SEED)
    print(asdict(figures))
    assert figures.violations == []
    assert (figures.lost, figures.published_twice) == (0, 0)
    assert figures.ended["completed"] > 0
    assert set(figures.kills) == {"kill_lane", "stop_lane", "kill_owner", "cut_upload"}
