"""A step that does not fit is refused before anything is loaded; one that runs out all the same says what to do."""

import dataclasses

import pytest
import torch

from sakuga.cost.training import TrainPlan, leaner, train_bytes
from sakuga.errors import MemoryLimitError
from sakuga.training import memory, run
from sakuga.training.memory import check_step_fits, compare_peak, fullest_plan
from sakuga.training.preflight import preflight
from sakuga.training.run import TrainJob, build_trainer
from sakuga.training.world import World
from sakuga.wan.catalogue import card
from tiny_training import batches_of, config, prepared_set, trainer_of

CUDA = torch.device("cuda")
LARGE = card("wan2.1-t2v-14b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


@pytest.fixture
def has(monkeypatch):
    """`has(80, 500)`: a GPU of so many gigabytes in a machine of so many."""

    def give(device_gb: float, host_gb: float = 2000.0) -> None:
        sizes = {"cuda": device_gb, "cpu": host_gb}
        monkeypatch.setattr(memory, "memory_bytes", lambda device: round(sizes[device.type] * 1e9))

    return give


def plan(**changes) -> TrainPlan:
    settings = {name: changes.pop(name) for name in ("checkpointing", "base_precision") if name in changes}
    asked = config(model=LARGE.name, **{"base_precision": "bf16", "checkpointing": "recompute"} | settings)
    return TrainPlan(**{"settings": asked, "width": 832, "height": 480, "num_frames": 81} | changes)


def test_what_fits_is_let_go_and_what_does_not_hears_what_would(has):
    has(80)
    check_step_fits(plan(), LARGE, CUDA)
    with pytest.raises(MemoryLimitError, match=r"a step of 4 x 832x480 and 81 frames .* it fits with micro batch 1"):
        check_step_fits(plan(micro_batch=4), LARGE, CUDA)
    has(40)
    with pytest.raises(
        MemoryLimitError, match=r"cuda has 40\.0 GB, of which a run gets 95%; it fits with .* int8, or with 25"
    ):
        check_step_fits(plan(), LARGE, CUDA)
    check_step_fits(plan(), LARGE, torch.device("cpu"))


def test_checkpoints_on_the_host_must_fit_there(has):
    asked = plan(checkpointing="offload")
    needed = train_bytes(asked, LARGE).host / 1e9
    has(80, 1.2 * needed)
    check_step_fits(asked, LARGE, CUDA)
    has(80, 0.9 * needed)
    with pytest.raises(MemoryLimitError, match="of checkpoints on the host"):
        check_step_fits(asked, LARGE, CUDA)


def test_the_fullest_micro_batch_is_of_the_longest_sample(folder):
    asked = fullest_plan(batches_of(folder, config(global_batch_size=3)), World())
    assert (asked.width, asked.height, asked.num_frames, asked.micro_batch) == (32, 32, 9, 3)
    one_at_a_time = batches_of(folder, config(global_batch_size=3), micro_batch_size=1)
    assert fullest_plan(one_at_a_time, World()).micro_batch == 1
    assert not fullest_plan(batches_of(folder, config(global_batch_size=1)), World()).accumulates
    two = fullest_plan(batches_of(folder, config(global_batch_size=3)), World(size=2))
    assert (two.micro_batch, two.num_gpus, two.fsdp) == (2, 2, False)


def test_a_run_is_refused_before_its_model_is_loaded(folder, tmp_path, has, monkeypatch):
    has(0.001)
    monkeypatch.setattr(run, "load_model", lambda *_, **__: pytest.fail("loaded"))
    job = TrainJob(config=config(), prepared=str(folder), out=str(tmp_path), device="cuda")
    with pytest.raises(MemoryLimitError, match="frames of wan-mini needs"):
        build_trainer(job, World(), None)


def full_device(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_step_that_runs_out_says_what_to_change(folder, monkeypatch):
    trainer = trainer_of(folder, config())
    monkeypatch.setattr(trainer.module, "forward", full_device)
    with pytest.raises(MemoryLimitError, match=r"a step of wan-mini does not fit .*; take a micro-batch of 2"):
        trainer.train_step()


def test_a_preflight_that_runs_out_says_what_to_change_and_leaves_the_run_as_it_was(folder, monkeypatch):
    trainer = trainer_of(folder, config(), micro_batch_size=1)
    before = {name: value.detach().clone() for name, value in trainer.trained.items()}
    monkeypatch.setattr(trainer.module, "velocity", full_device)
    with pytest.raises(MemoryLimitError, match="take checkpointing recompute"):
        preflight(trainer)
    assert all(torch.equal(value, before[name]) for name, value in trainer.trained.items())


def test_the_next_step_is_the_cheapest_that_is_left():
    assert leaner(plan(micro_batch=5)) == "take a micro-batch of 2"
    assert leaner(plan()) == "take checkpointing offload"
    assert leaner(plan(checkpointing="offload")) == "take base precision int8"
    least = plan(checkpointing="offload", base_precision="int8")
    assert "fewer frames" in leaner(least)
    assert "fewer frames" not in leaner(dataclasses.replace(least, micro_batch=2))


@pytest.mark.parametrize(("share", "warns"), [(1.0, False), (1.09, False), (1.11, True), (0.89, True)])
def test_a_peak_far_from_the_prediction_is_told(share, warns, caplog):
    predicted = train_bytes(plan(), LARGE).peak
    assert compare_peak(round(share * predicted), plan(), LARGE) == predicted
    assert bool(caplog.records) is warns
