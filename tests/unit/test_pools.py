"""Farms as operators write them: what is refused and in which words, and that the files in serve/ can be used."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from sakuga.errors import SettingsError
from sakuga.farm.local_farm import farm_args
from sakuga.farm.pools import CPU_NICENESS, FarmArgs, PoolArgs

SERVE = Path(__file__).parents[2] / "serve"
CONFIGS = sorted(SERVE.glob("*.yaml"))


def args_of(path: Path) -> FarmArgs:
    (application,) = yaml.safe_load(path.read_text())["applications"]
    return FarmArgs.model_validate(application["args"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_serve_configs_are_valid_for_serve_and_for_the_farm(path):
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert schema.applications[0].import_path == "sakuga.farm.serving:build"
    for pool in args_of(path).pools:
        placement = pool.placement()
        assert len(placement.bundles) == pool.parallel.world_size
        assert sum(bundle.get("GPU", 0) for bundle in placement.bundles) == (
            pool.parallel.world_size if pool.device == "cuda" else 0
        )


def test_there_are_configs_for_one_to_eight_gpus_and_two_experts():
    sizes = {args_of(path).pools[0].parallel.world_size for path in CONFIGS if "i2v-14b" in path.stem}
    assert sizes == {1, 2, 4, 8}
    assert any(args_of(path).pools[0].model == "wan2.2-i2v-a14b" for path in CONFIGS)


def test_kuberay_manifests_hold_the_same_application():
    service = yaml.safe_load((SERVE / "kuberay" / "rayservice.yaml").read_text())
    inside = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert inside == yaml.safe_load((SERVE / "wan2.1-i2v-14b-1gpu.yaml").read_text())
    job = yaml.safe_load((SERVE / "kuberay" / "rayjob.yaml").read_text())
    for spec in (service["spec"]["rayClusterConfig"], job["spec"]["rayClusterSpec"]):
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in spec["workerGroupSpecs"]:
            (container,) = group["template"]["spec"]["containers"]
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert job["spec"]["entrypoint"].startswith("python jobs/render.py /shared/")


@pytest.mark.parametrize(
    ("pools", "told"),
    [
        ([], "pools of the farm"),
        ([{"model": "wan-mini", "lanse": 3}], "lanse"),
        ([{"model": "wan-mimi"}], "wan-mini"),
        ([{"model": "wan-mini", "ulysses": 5}], "does not divide"),
        ([{"model": "wan-mini", "memory": "resedent"}], "did you mean 'resident'"),
        ([{"model": "wan-mini", "scaling": {"min_lanes": 3, "max_lanes": 2}}], "more than max_lanes"),
        ([{"model": "wan-mini", "scaling": {"max_lanes": 0}}], "max_lanes"),
        ([{"model": "wan-mini", "simulated": {"device": "h1000"}}], "h1000"),
        ([{"model": "wan-mini"}, {"model": "wan-mini"}], "same model"),
        ([{"model": "wan2.1-i2v-14b-720p", "ulysses": 40, "ranks_per_node": 8}], "across nodes"),
        ([{"model": "wan-mini", "cpus_per_rank": 0}], "cpus_per_rank"),
    ],
)
def test_a_farm_that_cannot_be_is_refused_in_one_sentence(pools, told, tmp_path):
    with pytest.raises(Exception, match=told) as caught:
        farm_args({"pools": pools}, tmp_path, "http://127.0.0.1/metrics")
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_a_farm_keeps_its_things_in_its_folder_unless_told_otherwise(tmp_path):
    own = farm_args({"pools": [{"model": "wan-mini"}]}, tmp_path, "http://127.0.0.1/metrics")
    assert own.store == f"sqlite:///{tmp_path}/jobs.sqlite" and own.objects == f"{tmp_path}/objects"
    told = farm_args({"pools": [{"model": "wan-mini"}], "objects": "s3://b/p"}, tmp_path, "http://127.0.0.1/metrics")
    assert told.objects == "s3://b/p"
    with pytest.raises(SettingsError, match="storage"):
        farm_args({"pools": [{"model": "wan-mini"}], "storage": "x"}, tmp_path, "http://127.0.0.1/metrics")


def test_ranks_leave_the_processor_to_the_api_and_stages_go_where_they_are_told():
    pool = PoolArgs.model_validate({"model": "wan-mini", "encode": {"gpus": 0}})
    assert pool.rank_spec().niceness == CPU_NICENESS
    assert pool.rank_spec().stages == ("denoise", "decode")
    gpu = PoolArgs.model_validate({"model": "wan2.1-t2v-1.3b", "device": "cuda", "cfg": 2})
    assert (gpu.rank_spec().niceness, gpu.gpus_per_rank) == (0, 1.0)
