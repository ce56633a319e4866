"""Lanes on GPUs that are only counted: every rank has its own, and the replica none."""

import pytest
import ray
from ray import serve

from sakuga.farm.bundles import bundle_of_rank
from sakuga.farm.pools import FarmArgs, PoolArgs
from sakuga.farm.serving import lane_options

pytestmark = pytest.mark.ray

POOL = {"model": "wan2.1-i2v-14b-720p", "device": "cuda", "cfg": 2, "ulysses": 2, "cpus_per_rank": 0.5}


@ray.remote
class CountedRank:
    def gpus(self) -> list[int]:
        return ray.get_gpu_ids()


class Lane:
    """What `LaneReplica` does with its group, without a model."""

    def __init__(self) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray.util.get_current_placement_group()
        self._ranks = [
            CountedRank.options(
                num_gpus=1,
                num_cpus=0.5,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote()
            for index in range(4)
        ]

    def gpus(self) -> dict[str, object]:
        return {"ranks": ray.get([rank.gpus.remote() for rank in self._ranks]), "replica": ray.get_gpu_ids()}


@pytest.fixture
def two_lanes(ray_cluster):
    pool = PoolArgs.model_validate(POOL | {"scaling": {"min_lanes": 2, "max_lanes": 2}})
    farm = FarmArgs.model_validate({"pools": [pool]})
    options = lane_options(farm, pool) | {"name": "lane"}
    app = serve.deployment(**options)(Lane).bind()
    yield serve.run(app, name="placement", route_prefix=None)
    serve.shutdown()


def test_two_lanes_of_four_ranks_have_eight_gpus_between_them(two_lanes):
    seen = {}
    for _ in range(40):
        found = two_lanes.gpus.remote().result()
        assert found["replica"] == []
        seen[tuple(gpus[0] for gpus in found["ranks"])] = True
        if len(seen) == 2:
            break
    used = [gpu for lane in seen for gpu in lane]
    assert sorted(used) == list(range(8)), "each GPU once"


def test_neighbouring_ranks_share_a_node():
    assert bundle_of_rank(["a", "b", "a", "b"]) == [0, 2, 1, 3]
