"""Checkpoints: whole, tensors only, and of no use to another run."""

import dataclasses

import pytest
import torch

from sakuga.errors import TrainError
from sakuga.training.checkpoint import RunState, check_same_data, publish, read_state, read_tensors
from sakuga.wan.passport import LoraPassport
from tiny_training import config, prepared_set, trainer_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    settings = config(ema_decay=0.9)
    trainer = trainer_of(folder, settings)
    for _ in range(2):
        trainer.train_step()
    state = RunState(step=2, data_sha256="d" * 64, weights_sha256="w" * 64, metrics={"loss": 1.0})
    trainer.write(folder / "staged", state, LoraPassport(rank=4))
    return folder, settings, trainer, publish(folder / "staged", folder / "checkpoint")


def test_a_restored_trainer_is_the_one_that_was_saved(run):
    folder, settings, trainer, checkpoint = run
    state = read_state(checkpoint, settings)
    again = trainer_of(folder, settings)
    again.restore(checkpoint, state)
    assert again.step == 2
    for name in trainer.trained:
        assert torch.equal(trainer.trained[name], again.trained[name])
        assert torch.equal(trainer.ema.mean[name], again.ema.mean[name])
    before, after = (t.optimizers[0].state_dict()["state"] for t in (trainer, again))
    assert all(torch.equal(before[i]["exp_avg_sq"], after[i]["exp_avg_sq"]) for i in before)
    assert not (folder / "staged").exists()


@pytest.mark.parametrize("changes, said", [({"rank": 8}, "rank 4"), ({"lr": 1.0}, "lr"), ({"mode": "full"}, "mode")])
def test_another_run_is_refused(run, changes, said):
    _, settings, _, checkpoint = run
    with pytest.raises(TrainError, match=said):
        read_state(checkpoint, dataclasses.replace(settings, **changes))


def test_other_data_and_another_base_are_refused(run):
    state = read_state(run[3], run[1])
    check_same_data(state, data_sha256="d" * 64, weights_sha256="w" * 64)
    with pytest.raises(TrainError, match="another data set"):
        check_same_data(state, data_sha256="e" * 64, weights_sha256="w" * 64)
    with pytest.raises(TrainError, match="another base model"):
        check_same_data(state, data_sha256="d" * 64, weights_sha256="v" * 64)


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "state.json"])
def test_a_cut_file_is_named(run, tmp_path, name):
    import shutil

    broken = tmp_path / "checkpoint"
    shutil.copytree(run[3], broken)
    whole = (broken / name).read_bytes()
    (broken / name).write_bytes(whole[: len(whole) // 2])

    def read() -> None:
        read_state(broken, run[1])
        read_tensors(broken)

    with pytest.raises(TrainError, match="earlier one"):
        read()


def test_full_fine_tuning_saves_a_model_that_the_loader_takes(tmp_path):
    from safetensors.torch import load_file

    prepared_set(tmp_path)
    trainer = trainer_of(tmp_path, config(mode="full"))
    names = set(trainer.model.pipe.dit.state_dict())
    trainer.write(tmp_path / "full", RunState(), LoraPassport())
    assert set(load_file(tmp_path / "full" / "model.safetensors")) == names
