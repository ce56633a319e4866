"""The loss of a micro-batch: DiffSynth's own model, the same with checkpointing, sample by sample or together."""

import dataclasses

import pytest
import torch

from sakuga.training import objective
from sakuga.training.module import TrainingModule
from sakuga.wan.loading import load_model
from tiny_training import CARD, CPU, batches_of, config, prepared_set, trainer_of, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


@pytest.fixture(scope="module")
def batch(folder):
    batches = batches_of(folder, config(text_dropout=0.5))
    entries = [batches.of_step(step, num_batches=1, index=0)[0] for step in range(6)]
    return batches.micro_batch(max(entries, key=len))


def model(folder):
    return load_model(weights(folder), precision="fp32", stages=("denoise",))


def test_error_is_that_of_diffsynths_model(folder, batch, monkeypatch):
    from diffsynth.pipelines.wan_video import model_fn_wan_video

    from sakuga.wan.attention import attention

    plain = model(folder).pipe.dit
    x = objective.noisy(batch.latents_BCThw, batch.noise_BCThw, batch.sigma_B)
    with torch.no_grad(), attention("sdpa"):
        velocity = model_fn_wan_video(
            plain, latents=x, timestep=1000 * batch.sigma_B, context=batch.text_BLD, y=batch.given["y_BCTHW"]
        )
    expected = (velocity - (batch.noise_BCThw - batch.latents_BCThw)).square().mean((1, 2, 3, 4))
    module = TrainingModule(model(folder).pipe)
    with torch.no_grad():
        assert torch.allclose(module(batch), expected, rtol=2e-2)  # bf16 products
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.amp.autocast("cpu", enabled=False))
        assert torch.allclose(module(batch), expected, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", ["recompute", "offload"])
def test_checkpointing_changes_no_bit(folder, batch, checkpointing):
    gradients = []
    for kind in ("none", checkpointing):
        trainer = trainer_of(folder, config(checkpointing=kind))
        trainer.module(batch).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in trainer.trained.items()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_samples_do_not_see_each_other(folder, batch):
    module = TrainingModule(model(folder).pipe)
    with torch.no_grad():
        together = module(batch)
        alone = [
            module(
                dataclasses.replace(
                    batch,
                    latents_BCThw=batch.latents_BCThw[i : i + 1],
                    noise_BCThw=batch.noise_BCThw[i : i + 1],
                    sigma_B=batch.sigma_B[i : i + 1],
                    text_BLD=batch.text_BLD[i : i + 1],
                    pixel_weight_B1Thw=batch.pixel_weight_B1Thw[i : i + 1],
                    given={name: value[i : i + 1] for name, value in batch.given.items()},
                )
            )
            for i in range(len(together))
        ]
    assert len(together) > 1
    assert torch.allclose(together, torch.cat(alone), rtol=1e-2)


def test_a_clean_first_frame_is_no_part_of_the_error(folder, batch):
    module = TrainingModule(model(folder).pipe)
    held = dataclasses.replace(batch, first_frame_BCThw=batch.latents_BCThw[:, :, :1])
    other = torch.cat([torch.randn_like(batch.noise_BCThw[:, :, :1]), batch.noise_BCThw[:, :, 1:]], dim=2)
    with torch.no_grad():
        first, second = (module(dataclasses.replace(held, noise_BCThw=n)) for n in (batch.noise_BCThw, other))
        plain = module(dataclasses.replace(batch, noise_BCThw=other))
    assert torch.equal(first, second)
    assert not torch.allclose(plain, second)


def test_full_fine_tuning_trains_every_weight_in_fp32(folder, batch):
    trainer = trainer_of(folder, config(mode="full"))
    trainer.module(batch).sum().backward()
    assert sum(parameter.numel() for parameter in trainer.trained.values()) == CARD.num_params
    for name, parameter in trainer.trained.items():
        assert parameter.dtype is torch.float32
        assert parameter.grad is not None, name
    assert trainer.module.device == CPU
