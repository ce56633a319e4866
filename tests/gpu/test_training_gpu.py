"""A LoRA step on one CUDA device: the pre-flight lets it go, checkpointing changes no gradient, 8-bit moments resume.

Run on a machine with a CUDA device: pytest -m gpu tests/gpu     (elsewhere every test skips)
"""

from dataclasses import replace

import pytest
import torch

from sakuga.errors import MemoryLimitError
from sakuga.training import memory
from sakuga.training.batches import Batches
from sakuga.training.checkpoint import RunState, read_state
from sakuga.training.preflight import preflight
from sakuga.training.run import TrainJob, build_trainer
from sakuga.training.trainer import Trainer
from sakuga.training.world import World
from sakuga.wan.loading import load_model
from sakuga.wan.passport import LoraPassport
from tiny_training import CARD, batches_of, config, prepared_set, weights

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


@pytest.fixture
def trainer_of(folder):
    def make(**changes) -> Trainer:
        settings = config(**{"base_precision": "bf16"} | changes)
        on_cpu = batches_of(folder, settings)
        batches = Batches(on_cpu.prepared, on_cpu.cache, settings, CARD, CUDA)
        model = load_model(weights(folder), device="cuda", precision=settings.base_precision, stages=("denoise",))
        return Trainer(model, batches, settings, World())

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base_precision": "int8"},
        {"checkpointing": "recompute"},
        {"checkpointing": "offload"},
        {"optimizer": "adamw8bit", "rank": 32},
        {"mode": "full", "base_precision": "fp32"},
    ],
    ids=str,
)
def test_a_sound_run_passes_the_preflight_and_steps(trainer_of, changes):
    trainer = trainer_of(**changes)
    found = preflight(trainer)
    assert found.effect > 0
    assert found.peak_bytes > 0
    assert found.predicted_bytes > 0
    report = trainer.train_step()
    assert 0 < report.loss < 100
    assert report.grad_norm > 0


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Of the first micro-batch, with adapters that do something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.trained.values():
            parameter.copy_(torch.randn(parameter.shape) * 0.02)
    batch = trainer.batches.micro_batch(trainer.batches.of_step(0, num_batches=1, index=0)[0])
    (trainer.module(batch) * batch.share_B).sum().backward()
    return {name: parameter.grad for name, parameter in trainer.trained.items()}


def test_checkpointing_gives_the_same_gradients(trainer_of):
    plain = gradients(trainer_of())
    for kind in ("recompute", "offload"):
        for name, gradient in gradients(trainer_of(checkpointing=kind)).items():
            # The backward pass of attention adds in no fixed order.
            torch.testing.assert_close(gradient, plain[name], rtol=2e-2, atol=1e-2 * float(plain[name].abs().max()))


def test_the_gradients_are_the_cpus(trainer_of, folder):
    from tiny_training import trainer_of as on_cpu

    there, here = gradients(trainer_of()), gradients(on_cpu(folder, config(base_precision="bf16")))
    ours, theirs = (torch.cat([found[name].flatten().cpu() for name in here]) for found in (there, here))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1, abs=0.05)


def test_moments_in_8_bits_go_on_from_a_checkpoint(trainer_of, tmp_path):
    given = {"optimizer": "adamw8bit", "rank": 32, "num_steps": 4}
    whole = trainer_of(**given)
    whole.train_step()
    whole.write(tmp_path / "step", RunState(step=1), LoraPassport())
    resumed = trainer_of(**given)
    resumed.restore(tmp_path / "step", read_state(tmp_path / "step", resumed.config))
    moments = [state["exp_avg"] for state in resumed.optimizers[0].state.values()]
    assert "OptimState8bit" in {type(moment).__name__ for moment in moments}
    assert {moment.device.type for moment in moments} == {"cuda"}
    assert resumed.train_step().loss == pytest.approx(whole.train_step().loss, rel=1e-2)


def test_a_run_that_will_not_fit_is_refused_before_it_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "memory_bytes", lambda _: 10**6)
    job = TrainJob(config=config(base_precision="bf16"), prepared=str(folder), out=str(tmp_path), device="cuda")
    with pytest.raises(MemoryLimitError, match="frames of wan-mini needs"):
        build_trainer(job, World(), None)


def test_a_device_that_is_full_says_what_to_change(trainer_of, monkeypatch):
    trainer = trainer_of()
    forward = trainer.module.forward

    def greedy(batch):
        torch.empty(2**45, dtype=torch.uint8, device=CUDA)
        return forward(batch)

    monkeypatch.setattr(trainer.module, "forward", greedy)
    trainer.plan = replace(trainer.plan, micro_batch=1)
    with pytest.raises(MemoryLimitError, match="a step of wan-mini does not fit"):
        trainer.train_step()
