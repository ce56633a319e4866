"""Evaluation cases: drawn, from a data set, from a manifest; made once and the same for everybody."""

import json

import numpy as np
import pytest

from sakuga.errors import InputError, SweepError
from sakuga.media import read_video
from sakuga.synth import HELD_OUT_SEED, make_sample
from sakuga.synth.dataset import write_dataset
from sakuga.tuning.cases import CaseSpec, cases_of
from sakuga.tuning.sweepfile import Evaluation

SPEC = CaseSpec(width=64, height=64, num_frames=5, fps=15)


def test_drawn_cases_have_the_dancer_of_their_seed(tmp_path):
    cases = cases_of(Evaluation(synth="fairy", count=2), SPEC, tmp_path)
    sample = make_sample(HELD_OUT_SEED + 1, "fairy", width=64, height=64, num_frames=5)
    assert cases[1].fields["prompt"] == sample.prompt and cases[1].fields["seed"] == HELD_OUT_SEED + 1
    assert np.array_equal(read_video(cases[1].target), sample.video_THWC)
    assert cases_of(Evaluation(synth="fairy", count=2), SPEC, tmp_path) == cases


def test_each_case_is_rendered_with_each_seed(tmp_path):
    cases = cases_of(Evaluation(synth="live", count=1, seeds=(3, 4)), SPEC, tmp_path)
    assert [(case.name[-3:], case.fields["seed"]) for case in cases] == [("-s3", 3), ("-s4", 4)]


def test_cases_of_data_are_its_test_samples(tmp_path):
    write_dataset(tmp_path / "data", num_groups=2, first_seed=8, width=64, height=64, num_frames=5)
    evaluation = Evaluation(data=str(tmp_path / "data"), where={"world": "fairy"})
    (case,) = cases_of(evaluation, SPEC, tmp_path / "cases")
    assert case.fields["seed"] == 9 and read_video(case.target).shape == (5, 64, 64, 3)


def test_cases_of_a_manifest_have_no_target(tmp_path):
    rows = [{"id": "one", "prompt": "a dancer", "input_image": "a.png"}, {"prompt": "another", "seed": 5}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.png").touch()
    first, second = cases_of(Evaluation(manifest=str(tmp_path / "m.jsonl")), SPEC, tmp_path / "cases")
    assert first.name == "one" and first.fields["input_image"] == str((tmp_path / "a.png").resolve())
    assert second.fields["seed"] == 5 and second.target is None and isinstance(first.fields["seed"], int)


def test_a_manifest_may_be_a_table(tmp_path):
    (tmp_path / "m.csv").write_text("id,prompt,seed\none,a dancer,5\n")
    (case,) = cases_of(Evaluation(manifest=str(tmp_path / "m.csv")), SPEC, tmp_path / "cases")
    assert (case.name, dict(case.fields)) == ("one", {"prompt": "a dancer", "seed": 5})


def test_another_evaluation_in_the_folder_is_refused(tmp_path):
    cases_of(Evaluation(synth="live", count=1), SPEC, tmp_path)
    with pytest.raises(SweepError, match="cases of another evaluation"):
        cases_of(Evaluation(synth="live", count=2), SPEC, tmp_path)


@pytest.mark.parametrize(
    "text, message", [(b"", "is empty"), (b"{", "row 1"), (b'{"propmt": 1}', "did you mean 'prompt'")]
)
def test_bad_manifests_are_refused(tmp_path, text, message):
    (tmp_path / "m.jsonl").write_bytes(text)
    with pytest.raises(InputError, match=message):
        cases_of(Evaluation(manifest=str(tmp_path / "m.jsonl")), SPEC, tmp_path / "cases")
