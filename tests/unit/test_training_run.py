"""A whole run in one process: what it leaves, how it goes on, what is refused before anything is loaded."""

import dataclasses
import doctest
import json
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sakuga.errors import DataError, LoraError, OutputError, TrainError
from sakuga.training import runlog
from sakuga.training.loop import LoopOptions
from sakuga.training.prepared import PreparedSet
from sakuga.training.run import TrainJob, build_trainer, check_job, run_local
from sakuga.training.runlog import read_log
from sakuga.training.trainer import Trainer
from sakuga.training.validation import ValidationOptions
from sakuga.training.world import World
from sakuga.wan.passport import read_passport
from tiny_training import config, prepared_set


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


def job_of(folder, target, **changes) -> TrainJob:
    given = {
        "config": config(num_steps=4),
        "prepared": str(folder),
        "out": str(target),
        "loop": LoopOptions(save_every=2, evaluate_every=2, trigger_words=("fairy",)),
    }
    return TrainJob(**(given | changes))


def test_what_a_run_leaves(prepared, tmp_path):
    job = job_of(prepared, tmp_path, validation=ValidationOptions(num_samples=1, num_steps=2))
    result = run_local(job)
    assert result.steps == 4
    assert [path.name for path in result.files] == ["lora.safetensors"]
    assert {"loss", "heldout/loss", "validation/psnr_db", "validation/motion"} <= set(result.metrics)
    lines = list(read_log(tmp_path))
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert list((tmp_path / "tensorboard").iterdir())
    assert (tmp_path / "validation.png").stat().st_size > 1000
    passport = read_passport(tmp_path / "lora.safetensors")
    assert passport.base_sha256 == PreparedSet.read(prepared).weights_sha256
    assert passport.trigger_words == ("fairy",)
    assert passport.metrics["heldout/loss"] == pytest.approx(result.metrics["heldout/loss"], abs=1e-5)
    assert json.loads((tmp_path / "run.json").read_text())["config"]["rank"] == 4
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_0000002", "step_0000004"]


def test_a_run_goes_on_and_its_log_has_no_step_twice(prepared, tmp_path):
    run_local(job_of(prepared, tmp_path))
    with (tmp_path / "log.jsonl").open("a") as file:  # steps after the last checkpoint, of a run that was killed
        file.write('{"step": 5, "loss": 1.0, "time": 0}\n{"step": 6, "lo')
    longer = job_of(prepared, tmp_path, config=dataclasses.replace(config(), num_steps=6))
    assert run_local(longer).steps == 6
    assert [line["step"] for line in read_log(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_left_alone(prepared, tmp_path):
    first = run_local(job_of(prepared, tmp_path))
    before = (tmp_path / "lora.safetensors").read_bytes()
    again = run_local(job_of(prepared, tmp_path))
    assert (again.steps, dict(again.metrics)) == (first.steps, dict(first.metrics))
    assert (tmp_path / "lora.safetensors").read_bytes() == before


def test_time_that_is_up_saves_and_ends(prepared, tmp_path):
    result = run_local(job_of(prepared, tmp_path, max_seconds=0.0))
    assert result.steps == 1
    with safe_open(tmp_path / "lora.safetensors", framework="pt") as file:
        assert len(list(file.keys())) == 160


@pytest.mark.parametrize(
    "changes, error, said",
    [
        ({"prepared": "nowhere"}, DataError, "sakuga prepare"),
        ({"config": config(rank=193)}, TrainError, "above the width"),
        ({"config": config(model="wan2.1-t2v-1.3b")}, TrainError, "was prepared for wan-mini"),
        ({"config": config(mode="full"), "start_lora": "x.safetensors"}, TrainError, "does not start from a LoRA"),
        ({"config": config(mode="lora"), "style_lora": __file__}, TrainError, "goes beside a distillation"),
        ({"config": config(mode="distill"), "style_lora": "x.safetensors"}, LoraError, "is not there"),
        ({"config": config(mode="distill"), "sequence": 2}, TrainError, "distillation runs on whole models"),
        ({"out": "/proc/none"}, OutputError, "cannot be written"),
    ],
)
def test_what_is_refused_at_once(prepared, tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        check_job(job_of(prepared, tmp_path, **changes))


def test_data_that_was_prepared_with_other_weights(prepared, tmp_path):
    found = dataclasses.replace(PreparedSet.read(prepared), weights_sha256="f" * 64, cache=str(prepared / "cache"))
    found.write(tmp_path)
    with pytest.raises(TrainError, match="prepare it again"):
        build_trainer(job_of(tmp_path, tmp_path / "out"), World(), None)


def test_another_data_set_cannot_take_over_a_run(prepared, tmp_path):
    run_local(job_of(prepared, tmp_path))
    found = PreparedSet.read(prepared)
    fewer = dataclasses.replace(found, samples=found.samples[1:], cache=str(prepared / "cache"))
    (tmp_path / "fewer").mkdir()
    fewer.write(tmp_path / "fewer")
    with pytest.raises(TrainError, match="another data set"):
        run_local(job_of(tmp_path / "fewer", tmp_path))


def test_a_lora_of_another_base_is_no_start(prepared, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 8), "blocks.0.self_attn.q.lora_B.weight":
               torch.ones(8, 4)}, path)  # fmt: skip
    with pytest.raises(LoraError):
        build_trainer(check_job(job_of(prepared, tmp_path, start_lora=str(path))), World(), None)


def test_a_lora_of_a_base_with_other_weights_is_no_start(prepared, tmp_path):
    run_local(job_of(prepared, tmp_path / "first", max_seconds=0.0))
    path = tmp_path / "first" / "lora.safetensors"
    check_job(job_of(prepared, tmp_path / "second", start_lora=str(path)))
    other = dataclasses.replace(read_passport(path), base_sha256="e" * 64)
    save_file(load_file(path), path, metadata=other.to_metadata())
    with pytest.raises(LoraError, match="trained on another base"):
        build_trainer(check_job(job_of(prepared, tmp_path / "second", start_lora=str(path))), World(), None)


def test_an_interrupt_saves_and_the_run_goes_on(prepared, tmp_path, monkeypatch):
    step = Trainer.train_step

    def interrupted(trainer):
        report = step(trainer)
        if report.step == 3:
            signal.raise_signal(signal.SIGINT)
        return report

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="3 of 4 steps are in"):
        run_local(job_of(prepared, tmp_path, loop=LoopOptions(save_every=100)))
    assert run_local(job_of(prepared, tmp_path)).steps == 4
    assert [line["step"] for line in read_log(tmp_path) if "loss" in line] == [1, 2, 3, 4]


def test_examples():
    assert doctest.testmod(runlog).failed == 0
