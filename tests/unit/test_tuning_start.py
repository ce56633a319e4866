"""What a sweep lacks is said before its folder is made: files, kernels, figures that nobody could report."""

import json
import re
from pathlib import Path

import pytest

from sakuga.errors import SakugaError
from sakuga.farm.tune import run_sweep
from sakuga.tuning.points import check_points
from sakuga.tuning.start import check_start
from sakuga.tuning.sweepfile import parse_sweep, read_sweep
from sakuga.tuning.trials import SweepFolder

SWEEPS = Path(__file__).parents[2] / "sweeps"
INFERENCE = {
    "name": "i", "kind": "inference", "base": {"loras": ["fairy"]}, "space": {"num_inference_steps": [8]},
    "evaluation": {"synth": "fairy"}, "objectives": ["seconds"],
}  # fmt: skip
TRAINING = {
    "name": "t", "kind": "training", "data": "no data", "space": {"rank": [4]}, "budget": {"tokens": 1000},
    "objectives": ["heldout_loss"],
}  # fmt: skip
ROW = {"prompt": "a cat", "input_image": "cat.png"}


def manifest(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"evaluation": {"manifest": str(folder / "rows.jsonl")}}


@pytest.mark.parametrize(
    "sweep, message",
    [
        (INFERENCE | {"base": {"loras": ["moon"]}}, "the base: wan-mini has no LoRA 'moon'"),
        (INFERENCE | {"base": {"loras": [{"path": "no.safetensors"}]}}, "the base: LoRA no.safetensors does not exist"),
        (INFERENCE | {"reference": {"loras": ["moon"]}}, "reference: wan-mini has no LoRA 'moon'"),
        (INFERENCE | {"base": {}, "space": {"loras": [["fairy"], ["moon"]]}}, "of the space: wan-mini has no LoRA"),
        (
            INFERENCE | {"space": {"attention": ["auto", "sage"]}},
            "attention 'sage' of the space: attention 'sage' needs",
        ),
        (INFERENCE | {"space": {"precision": ["fp32", "fp8-dynamic"]}}, "precision 'fp8-dynamic' of the space"),
        (INFERENCE | {"evaluation": {"manifest": "no.jsonl"}}, "no.jsonl' does not exist"),
        (INFERENCE | {"evaluation": {"data": "no data"}}, "'no data' does not exist"),
        (INFERENCE | {"weights": "no weights"}, "wan-mini is not complete in no weights"),
        (INFERENCE | {"model": "wan2.1-t2v-1.3b", "base": {}}, "say where its files are"),
        (TRAINING, "'no data' does not exist"),
    ],
)
def test_what_is_not_there_is_found_before_anything_is_begun(sweep, message):
    check_points(parse_sweep(sweep))
    with pytest.raises(SakugaError, match=re.escape(message)):
        check_start(parse_sweep(sweep))


def test_a_name_is_not_spent_on_a_sweep_that_cannot_start(tmp_path):
    with pytest.raises(SakugaError, match="does not exist"):
        run_sweep(parse_sweep(TRAINING), SweepFolder(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_rows_of_a_manifest_are_read_at_the_start(tmp_path):
    for rows, message in (
        ([ROW], "cat.png' {0,1}, which does not exist"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], "row 2 of .* already that of row 1"),
        ([{"prompt": "a", "num_frams": 3}], "did you mean 'num_frames'"),
    ):
        with pytest.raises(SakugaError, match=message):
            check_start(parse_sweep(INFERENCE | manifest(tmp_path, *rows)))
    plain = INFERENCE | manifest(tmp_path, {"prompt": "a cat"}) | {"base": {}}
    check_start(parse_sweep(plain))
    with pytest.raises(SakugaError, match="adherence is measured where prompts name"):
        check_start(parse_sweep(plain | {"objectives": ["adherence"]}))


@pytest.mark.parametrize("name", ["fairy-cache", "fairy-mix"])
def test_ready_sweeps_lack_nothing(name):
    check_start(read_sweep(SWEEPS / f"{name}.yaml"))


def test_of_a_gpu_elsewhere_nothing_is_said(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    sweep = INFERENCE | {"space": {"precision": ["fp8"], "attention": ["sage"]}, "executors": {"device": "cuda"}}
    check_points(parse_sweep(sweep))
    check_start(parse_sweep(sweep))
