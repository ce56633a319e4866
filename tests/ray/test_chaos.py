"""A short chaos run: every kind of disturbance once, and nothing lost. `make chaos` is the long one."""

from dataclasses import asdict
from itertools import pairwise

import pytest
import ray

import chaos
from sakuga.farm import store_actor

pytestmark = pytest.mark.ray

SECONDS, SEED = 12.0, 7


def test_the_plan_of_a_seed_has_every_kind_and_is_always_the_same():
    planned = chaos.plan(SEED, 60.0)
    assert planned == chaos.plan(SEED, 60.0) != chaos.plan(SEED + 1, 60.0)
    assert {each.kind for each in chaos.plan(SEED, SECONDS)} == set(chaos.WEIGHTS)
    assert all(0 < one.at_s < two.at_s < 60.0 for one, two in pairwise(planned))


def test_whatever_dies_no_job_is_lost_and_none_is_published_twice(ray_cluster, tmp_path):
    figures = chaos.run(tmp_path, seconds=SECONDS, seed=SEED)
    print(asdict(figures))
    assert figures.violations == []
    assert (figures.lost, figures.published_twice) == (0, 0)
    assert figures.ended["completed"] > 0 and figures.jobs > figures.ended["failed"]
    assert set(figures.kills) == {"kill_lane", "stop_lane", "kill_owner", "cut_upload"}
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(store_actor.NAME, namespace=store_actor.NAMESPACE)
