"""Sweeps on Ray Tune with trials that take no time: who runs them, what stops them, what a dead driver leaves."""

import json

import optuna
import pytest

from fake_trials import begun, processes
from sakuga.errors import SweepError
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
    assert len(list((folder.path / "tensorboard").glob("*/events*"))) == 2
    study = optuna.load_study(study_name="t", storage=f"sqlite:///{folder.path / 'optuna.sqlite'}")
    assert len(study.trials) == 5
    assert sorted(trial.values[1] for trial in study.trials if trial.values) == [4, 8]

    again = run_sweep(sweep, folder, runner=RUNNER)
    assert again.num_new == 0
    assert len(begun(folder)) == 6
    with pytest.raises(SweepError, match="other content"):
        run_sweep(sweep_of(space={"rank": [4]}), folder, runner=RUNNER)


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_optuna_is_told_what_trials_gave(ray_cluster, tmp_path, algorithm):
    sweep = sweep_of(
        space={"rank": [4, 13], "targets": [["q", "k"], ["v"]], "lr": LRS},
        search={"algorithm": algorithm},
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
