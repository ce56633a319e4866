"""Sweeps on Ray Tune whose trials really train: warm executors, and a Ray Train run in each trial."""

import pytest
from safetensors.torch import load_file

from sakuga.farm.tune import run_sweep
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, SweepFolder
from tiny_training import prepared_set

pytestmark = pytest.mark.ray

TOKENS_OF_A_STEP = 43


def sweep_of(data, **changes):
    return parse_sweep(
        {"name": "t", "kind": "training", "data": str(data), "objectives": ["heldout_loss"],
         "base": {"global_batch_size": 4, "warmup_steps": 1, "base_precision": "fp32"},
         "space": {"rank": [2, 4]}, "budget": {"tokens": 2 * TOKENS_OF_A_STEP}} | changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder, num_test=1)
    return folder


@pytest.mark.slow
def test_trials_of_a_warm_executor(ray_cluster, prepared, tmp_path):
    folder = SweepFolder(tmp_path / "t")
    summary = run_sweep(sweep_of(prepared), folder)
    assert summary.counts == {DONE: 2}
    first, second = folder.results()
    assert second.overhead_s < first.overhead_s  # the base is there
    for result in (first, second):
        lora = load_file(folder.trial(result.id) / result.lora)
        assert {len(value) for name, value in lora.items() if "lora_A" in name} == {result.point["rank"]}
        assert len(folder.curve(result.id)) == 2
        assert not (folder.trial(result.id) / "state").exists()


@pytest.mark.slow
def test_trials_of_several_workers(ray_cluster, prepared, tmp_path):
    folder = SweepFolder(tmp_path / "t")
    sweep = sweep_of(prepared, space={"rank": [2]}, executors={"workers": 2, "count": 1})
    assert run_sweep(sweep, folder).counts == {DONE: 1}
    (result,) = folder.results()
    assert (folder.trial(result.id) / result.lora).is_file()
    assert [line["share"] for line in folder.curve(result.id)] == [0.5, 1]
    assert result.figures["heldout_loss"] == folder.curve(result.id)[-1]["figures"]["heldout_loss"]
