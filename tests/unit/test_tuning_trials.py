"""The folder of a sweep: what is written is read again, and other content under the same name is refused."""

import pytest

from sakuga.errors import SweepError
from sakuga.tuning.space import trial_id
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, FAILED, CaseFigures, SweepFolder, TrialResult

SWEEP = parse_sweep(
    {"name": "s", "kind": "inference", "space": {"num_inference_steps": [4, 8]}, "evaluation": {"synth": "fairy"},
     "objectives": ["seconds"]}
)  # fmt: skip
POINT = {"num_inference_steps": 4}
RESULT = TrialResult(
    id=trial_id(POINT), point=POINT, state=DONE, figures={"seconds": 1.5},
    rows=(CaseFigures(name="a", figures={"seconds": 1.5}, render_key="k"),), overhead_s=0.1, wall_s=2.0,
)  # fmt: skip


def test_results_are_read_as_they_were_written(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    folder.create(SWEEP)
    folder.create(SWEEP)
    folder.write(RESULT)
    folder.write(TrialResult(id="other", point={}, state=FAILED, reason="E_NAN: no"))
    assert folder.sweep() == SWEEP
    assert folder.result(RESULT.id) == RESULT
    assert [result.id for result in folder.results()] == [RESULT.id, "other"]
    assert folder.result("unknown") is None


def test_another_sweep_of_the_name_is_refused(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    folder.create(SWEEP)
    more = SWEEP.model_copy(update={"executors": SWEEP.executors.model_copy(update={"count": 3})})
    folder.create(more)
    assert folder.sweep() == more
    with pytest.raises(SweepError, match="holds a sweep with other content"):
        folder.create(SWEEP.model_copy(update={"objectives": ("flicker",)}))


def test_a_sweep_that_is_not_there_names_those_that_are(tmp_path):
    SweepFolder(tmp_path / "s").create(SWEEP)
    with pytest.raises(SweepError, match=r"there is no sweep 'x'.* has s"):
        SweepFolder(tmp_path / "x").sweep()


def test_a_line_that_was_half_written_is_cut_before_the_next(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    folder.add_to_curve("a", {"share": 0.25})
    with (folder.trial("a") / "curve.jsonl").open("a") as file:
        file.write('{"share": 0.5, "tok')
    folder.add_to_curve("a", {"share": 0.5})
    assert folder.curve("a") == [{"share": 0.25}, {"share": 0.5}]


def test_damaged_files_are_told_of(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    folder.create(SWEEP)
    folder.write(RESULT)
    (folder.trial(RESULT.id) / "result.json").write_text("{")
    with pytest.raises(SweepError, match="is damaged"):
        folder.result(RESULT.id)
    (folder.trial(RESULT.id) / "result.json").write_text("[]")
    with pytest.raises(SweepError, match="is damaged"):
        folder.results()
    (folder.path / "sweep.json").write_text("{")
    with pytest.raises(SweepError, match=r"damaged sweep\.json"):
        folder.sweep()
