"""Training on several workers is training on one: the same losses and weights, however the work is split."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import train_work
from sakuga.errors import PlanError
from sakuga.training.world import World
from tiny_training import config, prepared_set

pytestmark = pytest.mark.dist

LOSS_TOLERANCE = 5e-3
"""Relative: products are bf16 and gradients are summed in another order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return train_work.train(folder, config(), 1, False, 3, None, None)


@pytest.mark.parametrize(
    "world_size, sequence, sharded",
    [(2, 1, False), (4, 1, False), (2, 2, False), (4, 2, False), (2, 1, True)],
    ids=["data 2", "data 4", "sequence 2", "data 2 x sequence 2", "sharded 2"],
)
def test_losses_are_those_of_one_worker(folder, alone, world, world_size, sequence, sharded):
    answers = world(world_size).run(train_work.train, folder, config(), sequence, sharded, 3, None, None)
    for losses, held_out, weights in answers:
        assert losses == pytest.approx(alone[0], rel=LOSS_TOLERANCE)
        assert held_out == pytest.approx(alone[1], rel=LOSS_TOLERANCE)
        for name, value in weights.items():
            assert torch.equal(value, answers[0][2][name])  # on every worker the same


def test_a_run_resumes_on_another_number_of_workers(folder, alone, world):
    world(2).run(train_work.train, folder, config(), 1, False, 2, None, "half")
    losses, _, _ = train_work.train(folder, config(), 1, False, 1, "half", None)
    assert losses == pytest.approx(alone[0][2:], rel=LOSS_TOLERANCE)
    shutil.rmtree(folder / "half")


def test_sharded_full_fine_tuning_saves_whole_weights(folder, world):
    settings = config(mode="full", lr=1e-4)
    world(2).run(train_work.train, folder, settings, 1, True, 2, None, "sharded")
    expected = train_work.train(folder, settings, 1, False, 2, None, "whole")
    ours, theirs = (load_file(folder / name / "trained.safetensors") for name in ("sharded", "whole"))
    assert set(ours) == set(theirs)
    for name in ours:
        assert ours[name].shape == theirs[name].shape
        assert torch.allclose(ours[name], theirs[name], atol=4e-4), name  # two steps of lr 1e-4, whatever their signs
    resumed = world(2).run(train_work.train, folder, settings, 1, True, 1, "sharded", None)
    assert resumed[0][0] == pytest.approx(
        train_work.train(folder, settings, 1, False, 1, "whole", None)[0], rel=LOSS_TOLERANCE
    )
    assert expected[0][0] > 0


@pytest.mark.parametrize(
    "sequence, sharded, mode",
    [(1, False, "lora"), (2, False, "lora"), (1, True, "lora"), (1, True, "full")],
    ids=["data", "sequence", "sharded", "sharded full"],
)
def test_the_preflight_flies_with_several_workers(folder, world, sequence, sharded, mode):
    for effect, is_left in world(2).run(train_work.fly, folder, config(mode=mode), sequence, sharded):
        assert effect > 0
        assert is_left


def test_workers_that_cannot_be_grouped(world):
    with pytest.raises(PlanError, match="needs as many"):
        World.join(sequence=2)
