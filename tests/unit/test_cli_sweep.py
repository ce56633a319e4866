"""`sakuga sweep` as a user types it: the file is the command, what cannot be run is one sentence, trials are shown."""

import json

import pytest

from sakuga.cli import main
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, FAILED, SweepFolder, TrialResult

FILE = {"name": "steps", "kind": "inference", "space": {"num_inference_steps": [4, 8]},
        "evaluation": {"synth": "fairy", "count": 1}, "objectives": ["seconds"]}  # fmt: skip


def run(capsys, *words: str) -> tuple[int, dict, str]:
    code = main.run(["sweep", *words, "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out.strip().splitlines()[-1]), told.err


@pytest.fixture
def ended(tmp_path):
    """A sweep with two trials that have ended."""
    folder = SweepFolder(tmp_path / "steps")
    folder.create(parse_sweep(FILE))
    folder.write(TrialResult(id="aaaaaaaa", point={"num_inference_steps": 4}, state=DONE, figures={"seconds": 1.0}))
    folder.write(TrialResult(id="bbbbbbbb", point={"num_inference_steps": 8}, state=FAILED, reason="E_NAN not finite"))
    return folder


def test_show(capsys, ended, tmp_path):
    code, told, _ = run(capsys, "show", "steps", "--out", str(tmp_path))
    assert code == 0
    assert [trial["id"] for trial in told["trials"]] == ["aaaaaaaa", "bbbbbbbb"]
    assert main.run(["sweep", "show", "steps", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "aaaaaaaa" in text and "E_NAN" in text and "no report yet" in text


@pytest.mark.parametrize(
    "words, changes, code, said",
    [
        (("{file}",), {"space": {}}, "E_SWEEP", "the space is empty"),
        (("run", "{file}"), {"objectives": ["second"]}, "E_SWEEP", "did you mean 'seconds'"),
        (("--out", "{out}", "{file}"), {"budget": {"trials": 0}}, "E_SWEEP", "budget.trials"),
        (("{file}",), {"space": {"num_inference_step": [4]}}, "E_SWEEP", "num_inference_steps"),
        (("{file}", "--out", "{out}"), {"space": {"guidance_scale": [1, 2]}}, "E_SWEEP", "other content"),
        (("nowhere.yaml",), {}, "E_SWEEP", "cannot be read"),
        (("{file}", "--executors", "0"), {}, "E_USAGE", "executors"),
        (("show", "step", "--out", "{out}"), {}, "E_SWEEP", "has steps"),
        (("resume", "step", "--out", "{out}"), {}, "E_SWEEP", "has steps"),
        (("show", "../x", "--out", "{out}"), {}, "E_RECIPE", "name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence(capsys, ended, tmp_path, monkeypatch, words, changes, code, said):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.yaml"
    file.write_text(json.dumps(FILE | changes))
    exit_code, told, err = run(capsys, *(word.format(file=file, out=tmp_path) for word in words))
    assert exit_code == 2
    assert told["error"]["code"] == code
    assert said in told["error"]["message"]
    assert err.count("\n") == 1
