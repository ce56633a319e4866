"""The pre-flight lets sound runs go and catches each silent failure that trainers are known for."""

import copy

import pytest
import torch

from sakuga.errors import PreflightError
from sakuga.training import adapters
from sakuga.training import preflight as checks
from sakuga.training.preflight import preflight
from tiny_training import config, prepared_set, trainer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base_precision": "bf16"},
        {"base_precision": "int8"},
        {"mode": "full"},
        {"alpha": 8.0},
        {"optimizer": "muon"},
    ],
    ids=str,
)
def test_a_sound_run_passes_and_is_left_as_it_was(folder, changes):
    trainer = trainer_of(folder, config(**changes))
    before = {name: value.detach().clone() for name, value in trainer.trained.items()}
    found = preflight(trainer)
    assert found.effect > 0
    assert found.num_tensors == len(before)
    assert all(torch.equal(value, before[name]) for name, value in trainer.trained.items())
    assert all(value.grad is None for value in trainer.trained.values())
    assert trainer.train_step().step == 1


def test_attention_without_a_backward_is_caught(folder, monkeypatch):
    trainer = trainer_of(folder, config())
    kernel = trainer.module._kernel
    monkeypatch.setattr(trainer.module, "_kernel", lambda q, k, v, n: kernel(q.detach(), k.detach(), v.detach(), n))
    with pytest.raises(PreflightError, match=r"self_attn\.q\.lora_A.* gets no gradient"):
        preflight(trainer)


def test_blocks_that_are_copied_at_every_call_are_caught(folder, monkeypatch):
    """As DiffSynth's fp8 layers do: the gradient lands on the copy."""
    trainer = trainer_of(folder, config())
    for block in trainer.module.experts[0].blocks:
        call = block.forward
        monkeypatch.setattr(
            block, "forward", lambda *given, call=call: call.__func__(copy.deepcopy(call.__self__), *given)
        )
    with pytest.raises(PreflightError, match="gets no gradient: its layer is not called, or is called as a copy"):
        preflight(trainer)


def test_adapters_in_bf16_are_caught(folder):
    trainer = trainer_of(folder, config())
    for parameter in trainer.trained.values():
        parameter.data = parameter.data.bfloat16()
    with pytest.raises(PreflightError, match="fewer than 32 bits"):
        preflight(trainer)


def test_a_scale_that_the_file_loses_is_caught(folder, monkeypatch):
    trainer = trainer_of(folder, config(rank=4, alpha=8.0))
    save = adapters.save_lora
    monkeypatch.setattr(adapters, "save_lora", lambda named, scale, *given: save(named, 1.0, *given))
    with pytest.raises(PreflightError, match="another output than the run"):
        preflight(trainer)


def test_keys_that_no_loader_knows_are_caught(folder, monkeypatch):
    trainer = trainer_of(folder, config())
    save = adapters.save_lora
    monkeypatch.setattr(
        adapters, "save_lora", lambda named, *given: save({f"wrapped.{k}": v for k, v in named.items()}, *given)
    )
    with pytest.raises(PreflightError, match="cannot be read back"):
        preflight(trainer)


def test_an_optimizer_of_other_tensors_is_caught(folder, monkeypatch):
    trainer = trainer_of(folder, config())
    other = [torch.nn.Parameter(torch.zeros(1))]
    monkeypatch.setattr(checks, "build_optimizers", lambda *_, **__: [torch.optim.AdamW(other)])
    with pytest.raises(PreflightError, match="does not move in a step"):
        preflight(trainer)


def test_a_frozen_weight_that_moves_is_caught(folder, monkeypatch):
    trainer = trainer_of(folder, config())
    frozen = next(p for p in trainer.module.parameters() if not p.requires_grad)
    build = checks.build_optimizers

    class Careless(torch.optim.SGD):
        def step(self, closure=None):
            with torch.no_grad():
                frozen.add_(1e-3)

    monkeypatch.setattr(checks, "build_optimizers", lambda *given, **more: [*build(*given, **more), Careless([frozen])])
    with pytest.raises(PreflightError, match="frozen and changed"):
        preflight(trainer)


def test_a_gradient_that_is_not_finite_is_caught(folder):
    trainer = trainer_of(folder, config())
    with torch.no_grad():
        trainer.module.experts[0].head.head.bias.fill_(float("nan"))
    with pytest.raises(PreflightError, match="not finite"):
        preflight(trainer)
