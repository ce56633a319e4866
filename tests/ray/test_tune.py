"""Sweeps on Ray Tune with trials that take no time: who runs them, what stops them, what a dead driver leaves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import ray

from fake_trials import begun, processes
from sakuga.errors import SweepError
from sakuga.farm import tune
from sakuga.farm.schedulers import HELD_OUT, scheduler_of
from sakuga.farm.tune import run_sweep
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, FAILED, REFUSED, STOPPED, SweepFolder

pytestmark = pytest.mark.ray

RUNNER = "fake_trials:FakeRunner"
LRS = {"low": 0.001, "high": 0.01, "log": True}


def sweep_of(**changes):
    return parse_sweep(
        {"name": "t", "kind": "training", "data": "data", "objectives": ["heldout_loss", "train_s"],
         "budget": {"tokens": 1000}} | changes
    )  # fmt: skip


def states(folder):
    return {tuple(result.point.values()): result.state for result in folder.results()}


def test_a_grid_goes_on_whatever_its_trials_do(ray_cluster, tmp_path):
    sweep = sweep_of(space={"rank": [4, 13, 14, 15, 8], "lr": [0.001]})
    folder = SweepFolder(tmp_path / "t")
    told = []
    summary = run_sweep(sweep, folder, runner=RUNNER, on_result=lambda *given: told.append(given[1:]))
    assert summary.counts == {DONE: 2, FAILED: 2, REFUSED: 1}
    assert told == [(n, 5) for n in range(1, 6)]
    assert len(begun(folder)) == 6  # the one whose process died, once more
    reasons = {result.point["rank"]: result.reason for result in folder.results()}
    assert reasons[13] == "E_NAN the loss is not finite"
    assert reasons[14].startswith("E_MEMORY rank 14")
    assert reasons[15].startswith("E_WORKER_DIED")
    assert summary.best["heldout_loss"]["point"] == "rank 4, lr 0.001"
    assert json.loads((folder.path / "results.json").read_text())["best"] == summary.best
    assert len({path.parent for path in (folder.path / "tensorboard").glob("*/events*")}) == 2
    study = optuna.load_study(study_name="t", storage=f"sqlite:///{folder.path / 'optuna.sqlite'}")
    assert len(study.trials) == 5
    assert sorted(trial.values[1] for trial in study.trials if trial.values) == [4, 8]

    again = run_sweep(sweep, folder, runner=RUNNER)
    assert (again.num_new, again.counts) == (3, summary.counts)
    assert len(begun(folder)) == 6 + 4  # what failed, once more
    assert len(folder.results()) == 5
    with pytest.raises(SweepError, match="other content"):
        run_sweep(sweep_of(space={"rank": [4]}), folder, runner=RUNNER)


def test_optuna_is_told_what_trials_gave(ray_cluster, tmp_path):
    sweep = sweep_of(
        space={"rank": [4, 13], "targets": [["q", "k"], ["v"]], "lr": LRS},
        search={"algorithm": "tpe"},
        budget={"trials": 8, "tokens": 1000},
        executors={"count": 2},
        seeds=[0, 1],
    )
    folder = SweepFolder(tmp_path / "t")
    summary = run_sweep(sweep, folder, runner=RUNNER)
    assert sum(summary.counts.values()) == 16 == summary.num_new
    assert len(processes(folder)) <= 2  # executors stay
    study = optuna.load_study(study_name="t", storage=f"sqlite:///{folder.path / 'optuna.sqlite'}")
    by_state = [trial.state.name for trial in study.trials]
    assert by_state.count("COMPLETE") == summary.counts[DONE] / 2  # a point is one trial of Optuna's
    assert by_state.count("FAIL") == summary.counts.get(FAILED, 0) / 2


def test_successive_halving_stops_the_worse(ray_cluster, tmp_path):
    sweep = sweep_of(space={"lr": [0.001, 0.002, 0.01, 0.0005, 0.02]}, scheduler={"name": "asha"})
    folder = SweepFolder(tmp_path / "t")
    run_sweep(sweep, folder, runner=RUNNER)
    assert states(folder) == {
        (0.001,): DONE, (0.002,): STOPPED, (0.01,): STOPPED, (0.0005,): DONE, (0.02,): STOPPED
    }  # fmt: skip
    stopped = next(result for result in folder.results() if result.state == STOPPED)
    assert stopped.figures["heldout_loss"] > 0  # of its last report
    assert not list(folder.trials.glob("*/state"))


def test_data_is_prepared_once_at_each_length(tmp_path, monkeypatch):
    asked = []

    def prepare(request, num_workers):
        asked.append((request.num_frames, request.out.name, request.cache, num_workers))
        request.out.mkdir(parents=True)
        (request.out / "prepared.json").touch()

    monkeypatch.setattr(tune, "prepare", prepare)
    folder = SweepFolder(tmp_path / "t")
    cache = str(folder.path / "prepared" / "cache")
    tune._prepare(sweep_of(space={"num_frames": [17, 33]}), folder)
    tune._prepare(sweep_of(space={"num_frames": [17, 33]}), folder)
    assert asked == [(17, "17", cache, 0), (33, "33", cache, 0)]
    tune._prepare(sweep_of(space={"lr": [0.1]}, executors={"count": 2}), SweepFolder(tmp_path / "u"))
    assert asked[2][:2] == (None, "33") and asked[2][3] == 2


def test_rungs_are_made_again_from_what_was_reported(tmp_path):
    sweep = sweep_of(space={"lr": [0.1]}, scheduler={"name": "asha"})
    folder = SweepFolder(tmp_path / "t")
    new = "new"  # the rungs want its name alone
    report = {"tokens": 250, HELD_OUT: 0.5}
    empty = scheduler_of(sweep, folder)
    empty.on_trial_add(None, new)
    assert empty.on_trial_result(None, new, report) == "CONTINUE"
    folder.add_to_curve("old", {"share": 0.25, "tokens": 250, "figures": {"heldout_loss": 0.4}})
    with (folder.trial("old") / "curve.jsonl").open("a") as file:
        file.write('{"share": 0.5, "tok')  # its driver died
    again = scheduler_of(sweep, folder)
    again.on_trial_add(None, new)
    assert again.on_trial_result(None, new, report) == "STOP"
    again.on_trial_add(None, "old")  # it was under way, goes on and is in the first rung already
    again.on_trial_result(None, "old", {"tokens": 300, HELD_OUT: 0.01})
    assert dict(again._brackets[0]._rungs)[250] == {"old": -0.4, "new": -0.5}


def test_a_poor_trial_takes_over_from_a_good_one(ray_cluster, tmp_path):
    sweep = sweep_of(
        space={"lr": LRS},
        search={"algorithm": "random"},
        scheduler={"name": "pbt"},
        budget={"trials": 4, "tokens": 1000},
        executors={"count": 2},
    )
    folder = SweepFolder(tmp_path / "t")
    assert run_sweep(sweep, folder, runner=RUNNER).counts == {DONE: 4}
    results = folder.results()
    assert all(len(result.fields["path"]) == 4 for result in results)
    changed = [result for result in results if len(set(result.fields["path"])) > 1]
    assert changed
    assert all(0.001 <= result.point["lr"] <= 0.01 for result in changed)
    assert len(processes(folder)) < 4  # members take turns
    assert run_sweep(sweep, folder, runner=RUNNER).num_new == 0


def test_a_sweep_whose_time_is_up(ray_cluster, tmp_path):
    sweep = sweep_of(space={"rank": [17, 4]}, budget={"tokens": 1000, "minutes": 0.04})
    folder = SweepFolder(tmp_path / "t")
    with pytest.raises(SweepError, match=r"no trial reported .* \(1 stopped; stopped: the sweep's time was up\)"):
        run_sweep(sweep, folder, runner=RUNNER)
    assert states(folder) == {(17,): STOPPED}  # the other one had not begun


DRIVER = """
import ray, sys
from pathlib import Path
from sakuga.farm import tune
from sakuga.farm.schedulers import HELD_OUT, scheduler_of
from sakuga.farm.tune import run_sweep
from sakuga.tuning.sweepfile import read_sweep
from sakuga.tuning.trials import SweepFolder

ray.init(address=sys.argv[1], log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}})
run_sweep(read_sweep(Path(sys.argv[3])), SweepFolder(Path(sys.argv[4])), runner="fake_trials:FakeRunner")
"""


def test_a_killed_driver_loses_nothing(ray_cluster, tmp_path):
    sweep = sweep_of(space={"rank": [4, 8, 16, 32]})
    folder = SweepFolder(tmp_path / "t")
    file = tmp_path / "sweep.json"  # JSON is YAML
    file.write_text(json.dumps(sweep.model_dump(mode="json")))
    path = os.pathsep.join(sys.path)
    words = [sys.executable, "-c", DRIVER, ray.get_runtime_context().gcs_address, path, str(file), str(folder.path)]
    driver = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": path})
    try:
        state = folder.trials / "*" / "state" / "trial.json"
        wait_for(driver, lambda: len(folder.results()) == 2 and any('"share": 0.5' in s for s in _texts(state)))
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    (folder.path / "go").touch()
    summary = run_sweep(sweep, folder, runner=RUNNER)
    assert (summary.counts, summary.num_new) == ({DONE: 4}, 2)
    times = [begun(folder).count(result.id) for result in folder.results()]
    assert times == [1, 1, 2, 1]
    assert [len(result.fields["path"]) for result in folder.results()] == [4] * 4
    resumed = folder.results()[2]
    shares = [line["share"] for line in folder.curve(resumed.id)]
    assert [*shares[:2], shares[-1]] == [0.25, 0.5, 1.0]  # it went on; its old executor may have had a turn of its own


def wait_for(process, condition, limit_s=120):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _texts(pattern: Path) -> list[str]:
    """Of files that may go away while they are read."""
    found = []
    for path in pattern.parents[2].glob(str(pattern.relative_to(pattern.parents[2]))):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return found
