"""Sweep files: a whole one, the ready ones, and one sentence for each that cannot be used."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from sakuga.errors import SweepError
from sakuga.tuning.points import check_points
from sakuga.tuning.sweepfile import parse_sweep, read_sweep

READY = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
INFERENCE = yaml.safe_load("""
name: caches
kind: inference
base: {loras: [fairy], num_frames: 17}
reference: {num_inference_steps: 20}
space: {num_inference_steps: [8, 12], step_cache: [null, "teacache:0.1"]}
evaluation: {synth: fairy, count: 2}
objectives: [ref_ssim, seconds]
""")
TRAINING = yaml.safe_load("""
name: ranks
kind: training
data: out/data
base: {optimizer: muon}
space: {rank: [4, 16], lr: [0.001, 0.01]}
budget: {tokens: 100000}
objectives: [heldout_loss, train_s]
""")


def _with(sweep, **changes):
    changed = copy.deepcopy(sweep)
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            changed.setdefault(outer, {})[inner] = value
        else:
            changed[outer] = value
    return changed


def test_a_sweep_knows_which_figures_it_can_report():
    assert {"ref_ssim", "ssim", "seconds"} <= parse_sweep(INFERENCE).reportable
    assert "heldout_loss" not in parse_sweep(INFERENCE).reportable
    assert parse_sweep(TRAINING).reportable == {"heldout_loss", "train_s", "lora_bytes"}
    with_cases = parse_sweep(_with(TRAINING, evaluation={"synth": "fairy"}))
    assert "ssim" in with_cases.reportable and "ref_ssim" not in with_cases.reportable


def test_the_hash_is_of_what_is_found_not_of_how_fast():
    sweep = parse_sweep(INFERENCE)
    free = {"count": 4, "cpus": 2, "threads": 1}
    assert parse_sweep(_with(INFERENCE, executors=free)).content_sha256 == sweep.content_sha256
    for name, value in (("device", "cuda"), ("memory_bytes", 10**9)):
        assert parse_sweep(_with(INFERENCE, executors={name: value})).content_sha256 != sweep.content_sha256
    assert parse_sweep(_with(INFERENCE, evaluation__count=3)).content_sha256 != sweep.content_sha256
    assert parse_sweep(sweep.model_dump(mode="json")) == sweep


@pytest.mark.parametrize(
    "sweep, message",
    [
        ([], "it must be a mapping"),
        ({"name": "x"}, "the sweep lacks kind; add it"),
        (_with(INFERENCE, space={}), "the space is empty"),
        (_with(INFERENCE, objetives=["seconds"]), "no field 'objetives'; did you mean 'objectives'"),
        (_with(INFERENCE, budget__trails=3), "no field 'budget.trails'; did you mean 'trials'"),
        (_with(INFERENCE, budget__trials=0), "budget.trials is 0"),
        (_with(INFERENCE, budget__minutes=0), "budget.minutes is 0"),
        (_with(INFERENCE, objectives=[]), "objectives"),
        (_with(INFERENCE, objectives=["sssim"]), "no figure 'sssim'; did you mean 'ssim'"),
        (_with(INFERENCE, objectives=["heldout_loss"]), "no trial of this sweep reports heldout_loss"),
        (_with(INFERENCE, objectives=["seconds", "seconds"]), "named twice"),
        (_with(INFERENCE, evaluation=None), "needs an evaluation"),
        (_with(INFERENCE, evaluation={}), "the evaluation names no cases"),
        (_with(INFERENCE, evaluation__data="x"), "the evaluation names synth, data"),
        (_with(INFERENCE, evaluation__seeds=[-1]), "evaluation.seeds.0 is -1"),
        (_with(TRAINING, seeds=[1, 1]), "seeds has one twice"),
        (_with(INFERENCE, evaluation__seeds=[1, 1]), "a seed twice"),
        (_with(INFERENCE, evaluation__synth="moon"), "evaluation.synth is 'moon'"),
        (_with(INFERENCE, evaluation={"manifest": "m.jsonl"}, objectives=["ssim"]), "no trial of this sweep reports"),
        (_with(INFERENCE, search__algorithm="tpe"), "goes on for ever; give budget.trials"),
        (_with(INFERENCE, search__algorithm="nsga2", objectives=["seconds"], budget__trials=4), "several objectives"),
        (_with(INFERENCE, scheduler__name="asha"), "takes scheduler none"),
        (_with(INFERENCE, name="../x"), "name is '../x'"),
        (_with(INFERENCE, model=5), "model is 5"),
        (_with(INFERENCE, objectives="ssim"), "objectives is 'ssim'; write a list"),
        (_with(INFERENCE, objectives=["beauty"]), "no figure 'beauty'; it can report adherence"),
        (_with(INFERENCE, executors={"oversize": "resize"}), "an inference sweep takes refuse"),
        (_with(TRAINING, executors={"workers": 2, "oversize": "resize"}), "above 1 leave them out"),
        (_with(TRAINING, executors={"workers": 2, "memory_bytes": 1}), "above 1 leave them out"),
        (_with(INFERENCE, base={"num_frames": 1}, objectives=["motion_ratio"]), "one frame has no motion_ratio"),
        (_with(INFERENCE, base={}, space={"num_frames": [1, 5]}, objectives=["flicker"]), "one frame has no flicker"),
        (_with(TRAINING, evaluation={"synth": "fairy"}, render={"num_frames": 1}, objectives=["motion"]), "no motion"),
        (_with(TRAINING, budget={}), "needs budget.tokens"),
        (_with(TRAINING, data=None), "needs data"),
        (_with(TRAINING, scheduler__name="pbt"), "the space has lr alone"),
        (_with(TRAINING, scheduler__grace=1.5), "scheduler.grace is 1.5"),
        (_with(TRAINING, executors__device="tpu"), "executors.device is 'tpu'"),
    ],
)  # fmt: skip
def test_what_is_no_sweep_is_refused_in_one_sentence(sweep, message):
    with pytest.raises(SweepError, match=re.escape(message)):
        parse_sweep(sweep)


@pytest.mark.parametrize(
    "text",
    [
        b"a: [",
        b"\xff\xfe\xff",
        b"a: !!python/object:os.system {}",
        b"a: &a [*a]",
        b"[" * 2000,
        b"a: 2001-13-01",
        b"a: 1\nb: 2\na: 3",
        b"a: {b: {c: 1, c: 1}}",
        b"# \n" * 2**19,
    ],
)
def test_a_file_that_is_no_yaml_is_refused(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_bytes(text)
    with pytest.raises(SweepError, match=r"sweep\.yaml"):
        read_sweep(path)
    with pytest.raises(SweepError, match="cannot be read"):
        read_sweep(tmp_path / "none.yaml")


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path):
    (tmp_path / "sweep.yaml").write_text("name: a\nkind: inference\nname: b\n")
    with pytest.raises(SweepError, match=r"'name' stands twice .*line 3"):
        read_sweep(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_the_ready_sweeps_can_be_started(path):
    check_points(read_sweep(path))
