"""The gate and the way from a trial to a profile, on a tiny render: what passes, what is refused and how it is told."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import yaml

from sakuga.errors import GateError, ProfileError
from sakuga.tuning.gate import Gate, judge, read_gate
from sakuga.tuning.promotion import chosen_trial, pass_gate, profile_of, reference_of
from sakuga.tuning.renders import RenderStore
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, FAILED, SweepFolder, TrialResult

READY = sorted((Path(__file__).parents[2] / "gates").glob("*.yaml"))
SIZE = {"width": 64, "height": 64, "num_frames": 5}
GATE = {
    "model": "wan-mini", **SIZE, "cases": {"synth": "fairy", "count": 1}, "bars": {"ref_ssim": {"min": 0.1}},
    "reference": {"num_inference_steps": 3, "guidance_scale": 1},
}  # fmt: skip
SWEEP = parse_sweep(
    {"name": "s", "kind": "inference", "base": {**SIZE, "guidance_scale": 1, "loras": ["fairy"]},
     "space": {"num_inference_steps": [1, 3]}, "evaluation": {"synth": "fairy", "count": 1}, "objectives": ["seconds"]}
)  # fmt: skip
RESULT = TrialResult(
    id="0123abcd", point={"num_inference_steps": 1}, state=DONE, fields={**SWEEP.base, "num_inference_steps": 1}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = SweepFolder(tmp_path_factory.mktemp("sweeps") / "s")
    made.create(SWEEP)
    made.write(RESULT)
    made.write(TrialResult(id="failed00", point={}, state=FAILED, reason="E_NAN: no"))
    return made


def write(tmp_path, **changes):
    path = tmp_path / "gate.yaml"
    path.write_text(yaml.safe_dump(GATE | changes))
    return path


@pytest.fixture(scope="module")
def verdict(folder):
    return pass_gate(folder, RESULT, Gate.model_validate(GATE), device="cpu")


def test_a_candidate_that_holds_the_bars_becomes_a_profile(folder, verdict):
    assert verdict.passed and verdict.sheet is None
    gate = Gate.model_validate(GATE)
    profile = profile_of("fast", folder, RESULT, gate, verdict, plan="one", gate_name="g.yaml", lora_names={})
    assert profile.size == (64, 64, 5) and profile.source["trial"] == "0123abcd"
    assert profile.fields["num_inference_steps"] == 1 and "width" not in profile.fields
    assert profile.reference["num_inference_steps"] == 3
    assert profile.reference["loras"] == [{"name": "fairy", "weight": 1.0}]
    assert profile.measured["speedup"] > 1 and profile.measured["ref_ssim"] < 1


def test_stricter_bars_fail_with_figures_and_frames_and_render_nothing(folder, verdict, monkeypatch):
    monkeypatch.setattr("sakuga.engine.local.LocalEngine.load", _never)
    strict = Gate.model_validate(GATE | {"bars": {"ref_ssim": {"min": 0.9999}, "weighted_total": {"min": 0.5}}})
    failed = pass_gate(folder, RESULT, strict, device="cpu")
    assert not failed.passed and failed.figures["ref_ssim"] == verdict.figures["ref_ssim"]
    assert re.match(r"ref_ssim is 0\.\d+, at least 0\.9999 is asked for", failed.faults[0])
    assert failed.faults[1] == "weighted_total was not measured"
    assert failed.worst[0].case == "fairy-67108864" and 0 <= failed.worst[0].frame < 5
    assert failed.sheet is not None and failed.sheet.is_file()
    with pytest.raises(GateError, match="nobody rated case fairy-67108864"):
        pass_gate(folder, RESULT, strict, device="cpu", subjective={"other": 20.0})
    rated = pass_gate(folder, RESULT, strict, device="cpu", subjective={"fairy-67108864": 20.0})
    assert rated.figures["weighted_total"] > 0.5 and len(rated.faults) == 1


def _never(*_):
    raise AssertionError("rendered twice")


def test_loras_for_few_steps_are_not_the_reference(monkeypatch):
    gate = Gate.model_validate(GATE)
    fields = {"loras": ["fairy:0.8", "fast4"]}
    assert reference_of(gate, fields, None)["loras"] == [{"name": "fairy", "weight": 0.8}]
    assert "loras" not in reference_of(gate, {"loras": ["fast4"]}, None)
    own = Gate.model_validate(GATE | {"reference": {"loras": ["fast8"]}})
    assert reference_of(own, fields, None)["loras"] == ["fast8"]


def test_a_trial_is_found_by_the_beginning_of_its_name(folder):
    assert chosen_trial(folder, "0123") == RESULT
    measured = dataclasses.replace(RESULT, id="89ab0000", point={"num_inference_steps": 3}, figures={"seconds": 1.0})
    folder.write(measured)
    assert chosen_trial(folder, "best") == measured
    shutil.rmtree(folder.trial(measured.id))
    with pytest.raises(ProfileError, match="no trial 'best'"):
        chosen_trial(folder, "best")
    with pytest.raises(ProfileError, match="no trial 'zzz'; there are 0123abcd"):
        chosen_trial(folder, "zzz")
    with pytest.raises(ProfileError, match=r"failed \(E_NAN: no\); only a trial that is done"):
        chosen_trial(folder, "failed00")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "wan2.1-t2v-1.3b", "num_frames": 5}, "the gate is for wan2.1-t2v-1.3b"),
        ({"num_frames": 9}, "the trial rendered 64x64 with 5 frames and the gate asks for 64x64 with 9 frames"),
    ],
)
def test_a_gate_of_another_model_or_size_is_refused(folder, change, message):
    with pytest.raises(ProfileError, match=re.escape(message)):
        pass_gate(folder, RESULT, Gate.model_validate(GATE | change), device="cpu")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bars": {"ref_ssim": {"min": float("nan")}}}, "min of ref_ssim is nan; it must be a finite number"),
        ({"bars": {}}, "give some"),
        ({"bars": None}, "bars"),
        ({"barz": {}}, "no field 'barz'; did you mean 'bars'"),
        ({"cases": {"synth": "fairy", "cuont": 1}}, "did you mean 'count'"),
        ({"cases": {"count": 1}}, "the evaluation names no cases"),
        ({"reference": {"prompt": "x"}}, "the reference has 'prompt'"),
        ({"reference": {"num_inference_steps": -1}}, "the reference: num_inference_steps is -1"),
        ({"model": "wan-mni"}, "wan-mni"),
        ({"num_frames": 6}, "gate.yaml"),
        ({"tier": "best"}, "tier is 'best'"),
        ({"canary_share": 2}, "canary_share is 2"),
        ({"canary_share": 0}, "canary_share is 0"),
    ],
)
def test_bad_gate_files_are_refused_in_one_sentence(tmp_path, change, message):
    with pytest.raises(GateError, match=re.escape(message)):
        read_gate(write(tmp_path, **change))


@pytest.mark.parametrize("text", ["", "- a", "a: ["])
def test_what_is_no_gate_file_is_refused(tmp_path, text):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(GateError, match=r"g\.yaml"):
        read_gate(tmp_path / "g.yaml")


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_the_ready_gates_can_be_read(path):
    assert read_gate(path).limits


def test_a_frozen_candidate_does_not_pass_on_flicker_alone(tmp_path):
    """One step of a base without guidance hardly moves; its flicker is the lowest there is."""
    gate = Gate.model_validate(GATE | {"bars": {"flicker_ratio": {"max": 1}, "motion_ratio": {"min": 5}}})
    found = judge(gate, {"num_inference_steps": 1, "guidance_scale": 1}, gate.reference, folder=tmp_path,
                  store=RenderStore(tmp_path / "r"))  # fmt: skip
    assert any("motion_ratio" in fault for fault in found.faults)
