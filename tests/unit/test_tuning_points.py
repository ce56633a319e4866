"""Points of a space as fields of requests and settings of runs, and values that no trial could use."""

import re

import pytest

from sakuga.errors import SweepError
from sakuga.tuning.points import check_points, render_fields, request_of, train_config
from sakuga.tuning.sweepfile import parse_sweep

INFERENCE = {
    "name": "i", "kind": "inference", "base": {"loras": ["fairy:0.8"], "step_cache": "teacache:0.1"},
    "space": {"num_inference_steps": [8, 12]}, "evaluation": {"synth": "fairy"}, "objectives": ["seconds"],
}  # fmt: skip
RANDOM = {"search": {"algorithm": "random"}, "budget": {"trials": 2}}
TRAINING = {
    "name": "t", "kind": "training", "data": "d", "space": {"rank": [4, 8]}, "budget": {"tokens": 1000},
    "objectives": ["heldout_loss"],
}  # fmt: skip


def test_names_with_a_dot_go_inside():
    fields = render_fields(INFERENCE["base"], {"loras.fairy": 0.5, "step_cache.threshold_rel_l1": 0.2})
    request = request_of(parse_sweep(INFERENCE), fields, {"prompt": "a dancer", "seed": 3})
    assert request.loras[0].weight == 0.5 and request.seed == 3
    assert request.step_cache is not None
    assert (request.step_cache.kind, request.step_cache.threshold_rel_l1) == ("teacache", 0.2)


def test_null_takes_a_field_of_the_base_away():
    assert "step_cache" not in render_fields(INFERENCE["base"], {"step_cache": None})


def test_a_training_point_is_a_run():
    sweep = parse_sweep(TRAINING | {"base": {"targets": ["q", "k"], "lr": 1e-3}})
    config = train_config(sweep, {"rank": 8, "num_frames": 17}, num_steps=5, seed=2)
    assert (config.rank, config.targets, config.num_steps, config.seed) == (8, ("q", "k"), 5, 2)


@pytest.mark.parametrize(
    "sweep, message",
    [
        (INFERENCE | {"space": {"num_inference_step": [8]}}, "did you mean 'num_inference_steps'"),
        (INFERENCE | {"space": {"num_inference_steps": [8, 0]}}, "num_inference_steps 0 of the space"),
        (
            INFERENCE | {"space": {"num_inference_steps": {"low": 8, "high": 10**6}}, **RANDOM},
            "num_inference_steps 1000000",
        ),
        (INFERENCE | {"space": {"loras.moon": [1]}}, "the base names no such LoRA"),
        (INFERENCE | {"space": {"tiling.tile_width": [1]}}, "only loras.NAME and step_cache.FIELD have a dot"),
        (INFERENCE | {"space": {"prompt": ["x"]}}, "no field 'prompt'"),
        (INFERENCE | {"base": {}, "space": {"step_cache": ["tea"]}}, "step_cache 'tea' of the space"),
        (INFERENCE | {"space": {"attention": ["sagee"]}}, "attention 'sagee' of the space"),
        (INFERENCE | {"base": {}, "space": {"step_cache.threshold_rel_l1": [0.1]}}, "the base no step_cache"),
        (INFERENCE | {"base": {"num_frames": 18}}, "the base: 18 frames"),
        (INFERENCE | {"reference": {"num_inference_steps": 0}}, "reference: num_inference_steps is 0"),
        (INFERENCE | {"space": {"width": [64, 128]}}, "width is in the space, and the cases have one size"),
        (TRAINING | {"base": {"lr": 0}}, "the base: lr is 0"),
        (TRAINING | {"render": {"num_frames": 18}}, "render: 18 frames"),
        (INFERENCE | {"base": {"num_inference_steps": 8}}, "in the base and in the space"),
        (TRAINING | {"space": {"rank": [4, 10**6]}}, "rank 1000000 of the space"),
        (TRAINING | {"space": {"rnak": [4]}}, "did you mean 'rank'"),
        (TRAINING | {"space": {"targets": [["q"], ["qq"]]}}, "targets"),
        (TRAINING | {"space": {"num_frames": [18]}}, "num_frames 18 of the space"),
        (TRAINING | {"space": {"num_frames": [17.5]}}, "whole number"),
        (TRAINING | {"base": {"mode": "full"}}, "no field 'mode'"),
        (TRAINING | {"render": {"stepps": 4}}, "render has 'stepps'"),
    ],
)
def test_values_that_no_trial_could_use_are_found_before_the_first(sweep, message):
    with pytest.raises(SweepError, match=re.escape(message)):
        check_points(parse_sweep(sweep))


def test_good_sweeps_pass():
    check_points(parse_sweep(INFERENCE))
    check_points(parse_sweep(TRAINING | {"space": {"rank": [4, 64], "num_frames": [17, 33]}}))
