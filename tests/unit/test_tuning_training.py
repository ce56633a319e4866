"""Trials on a warm base: what stays as it was, what is equal, what is refused, what a failure leaves."""

import dataclasses
import json

import pytest
import torch

from sakuga.errors import DataError, MemoryLimitError, NumericsError, SweepError, TrainError
from sakuga.training import heldout
from sakuga.training.prepared import PreparedSet
from sakuga.training.trainer import Trainer
from sakuga.tuning import training_runner
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.training_runner import TrainingRunner, check_lengths, prepared_folder, steps_of, stops
from sakuga.tuning.trials import DONE, FAILED, SweepFolder
from sakuga.wan.passport import read_passport
from tiny_training import CARD, config, prepared_set

BASE = {"global_batch_size": 2, "warmup_steps": 0, "schedule": "constant", "base_precision": "fp32"}
TOKENS = 43
"""Of two steps."""


def sweep_of(data, **changes):
    return parse_sweep(
        {"name": "t", "kind": "training", "data": str(data), "base": BASE, "space": {"rank": [2, 4], "lr": [0.001]},
         "budget": {"tokens": TOKENS}, "objectives": ["heldout_loss"]} | changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder, num_test=1)
    return folder


@pytest.fixture(autouse=True)
def one_question(monkeypatch):
    """A held-out loss at one noise level, where nine take most of a test's time."""
    monkeypatch.setattr(heldout, "QUANTILES", (0.5,))


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "t")


@pytest.fixture(scope="module")
def warm(prepared, tmp_path_factory):
    """One runner for the module; its base has had adapters of every test before."""
    return TrainingRunner(sweep_of(prepared), SweepFolder(tmp_path_factory.mktemp("warm") / "t"))


def run(runner, trial_id, point, seed=0):
    runner.begin(trial_id, point, seed)
    reports = [runner.advance()]
    while not reports[-1].is_done:
        reports.append(runner.advance())
    return reports, runner.end(DONE)


def bits(runner):
    return {name: value.clone() for expert in runner._model.experts for name, value in expert.state_dict().items()}


def test_trials_leave_the_base_as_it_was_and_are_those_of_a_cold_runner(prepared, folder, warm, monkeypatch):
    flown = []
    real = training_runner.preflight
    monkeypatch.setattr(training_runner, "preflight", lambda trainer: flown.append(real(trainer)))
    reports, first = run(warm, "first", {"rank": 4, "lr": 0.01})
    before = bits(warm)
    _, other = run(warm, "other", {"rank": 2, "lr": 0.001}, seed=1)
    again_reports, again = run(warm, "again", {"rank": 4, "lr": 0.01})
    after = bits(warm)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(flown) == 1  # ranks and rates are one kind of adapter
    assert [report.share for report in reports] == [0.5, 1]
    assert [report.figures["heldout_loss"] for report in reports] == [
        report.figures["heldout_loss"] for report in again_reports
    ]
    files = [warm.folder.trial(result.id) / result.lora for result in (first, again, other)]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert first.figures["lora_bytes"] == files[0].stat().st_size > files[2].stat().st_size
    assert read_passport(files[0]).rank == 4
    assert warm.folder.result("again") == again
    assert again.overhead_s is not None and again.rows[0].name == "seed 0"


def test_a_copied_trial_goes_on_with_another_rate(folder, warm, tmp_path):
    warm.begin("a", {"rank": 2, "lr": 0.01}, 0)
    warm.advance()
    warm.save(tmp_path / "state")
    rest = warm.advance()
    warm.begin("a", {"rank": 2, "lr": 0.01}, 0)
    warm.restore(tmp_path / "state")
    assert warm.advance().figures["heldout_loss"] == rest.figures["heldout_loss"]
    warm.begin("b", {"rank": 2, "lr": 0.0001}, 1)
    warm.restore(tmp_path / "state")
    assert warm.advance().is_done
    assert warm.end(DONE).reason == "lr 0.01 from 0%, lr 0.0001 from 50%"
    warm.begin("c", {"rank": 4, "lr": 0.01}, 0)
    with pytest.raises(TrainError, match="rank 2 and is now given 4"):
        warm.restore(tmp_path / "state")
    (tmp_path / "state" / "config.json").write_text("{")
    with pytest.raises(TrainError, match="is damaged"):
        warm.restore(tmp_path / "state")


def test_equal_tokens_for_clips_of_any_length(prepared):
    found = PreparedSet.read(prepared)
    short, long = (
        dataclasses.replace(found, samples=tuple(sample for sample in found.samples if sample.num_frames == frames))
        for frames in (5, 9)
    )
    sweep = sweep_of(prepared, budget={"tokens": 100_000})
    steps = [steps_of(sweep, config(), each, CARD) for each in (short, long)]
    per_step = [4 * 2 * (4 + 4 + 6 + 6) / 4 * 1, 4 * 3 * 4]  # samples, latent frames, patches of 32x32 and 32x48
    assert steps == [int(100_000 / tokens) for tokens in per_step]
    with pytest.raises(TrainError, match="give more"):
        steps_of(sweep_of(prepared, budget={"tokens": 3}), config(), found, CARD)
    nothing = dataclasses.replace(found, samples=())
    with pytest.raises(DataError, match="no training sample"):
        steps_of(sweep, config(), nothing, CARD)


def test_reports_fall_on_the_rungs(prepared):
    asha = sweep_of(prepared, scheduler={"name": "asha", "grace": 0.1, "reduction_factor": 3})
    assert stops(asha, 80) == [8, 20, 24, 40, 60, 72, 80]
    pbt = sweep_of(prepared, space={"lr": [0.1, 0.2]}, scheduler={"name": "pbt", "interval": 0.3})
    assert stops(pbt, 100) == [25, 30, 50, 60, 75, 90, 100]
    assert stops(asha, 3) == [1, 2, 3]


def test_what_goes_wrong_in_a_trial_ends_it_alone(warm, monkeypatch):
    real = Trainer._train_step

    def full(trainer):
        if trainer.step == 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(trainer)

    monkeypatch.setattr(Trainer, "_train_step", full)
    with pytest.raises(MemoryLimitError, match="does not fit"):
        run(warm, "full", {"rank": 2, "lr": 0.01})
    result = warm.end(FAILED, "E_MEMORY it was full")
    assert (result.state, result.reason, result.lora) == (FAILED, "E_MEMORY it was full", None)
    assert result.figures["heldout_loss"] > 0  # of its last report

    def diverges(trainer):
        for parameter in trainer.trained.values():
            parameter.data.fill_(float("nan"))
        return real(trainer)

    monkeypatch.setattr(Trainer, "_train_step", diverges)
    with pytest.raises(NumericsError):
        run(warm, "nan", {"rank": 2, "lr": 0.01})
    warm.end(FAILED, "E_NAN")
    monkeypatch.setattr(Trainer, "_train_step", real)
    assert run(warm, "next", {"rank": 2, "lr": 0.01})[1].state == DONE


def test_a_trial_that_will_not_fit(prepared, folder):
    small = {"memory_bytes": 30_000_000}
    runner = TrainingRunner(sweep_of(prepared, executors=small), folder)
    with pytest.raises(MemoryLimitError, match="is predicted to need"):
        runner.begin("a", {"rank": 4, "lr": 0.01}, 0)


def test_data_at_other_lengths(prepared, folder):
    sweep = sweep_of(prepared, space={"num_frames": [5, 13]})
    with pytest.raises(SweepError, match="was prepared at 5, 9 frames and the space asks for 5, 13"):
        check_lengths(sweep)
    check_lengths(sweep_of(prepared, space={"num_frames": [5, 9]}))
    raw = sweep_of(folder.path, space={"num_frames": [5, 9]})
    assert prepared_folder(raw, folder, 9) == folder.prepared / "9"


def test_data_of_other_weights_or_without_a_test(prepared, folder, tmp_path):
    written = json.loads((prepared / "prepared.json").read_text())
    written["cache"] = str(prepared / "cache")
    for name, changes, sentence in (
        ("other", {"weights_sha256": "0" * 64}, "prepared with other weights"),
        ("train", {"samples": [each for each in written["samples"] if each["split"] == "train"]}, "no test samples"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prepared.json").write_text(json.dumps({**written, **changes}))
        with pytest.raises((TrainError, DataError), match=sentence):
            TrainingRunner(sweep_of(tmp_path / name), folder).begin("a", {"rank": 2, "lr": 0.01}, 0)
