"""Every family of models trains: what the loop computes is what the engine renders with, and the pre-flight passes."""

import dataclasses

import pytest
import torch

import tiny_wan
from families import task
from sakuga.engine import LocalEngine
from sakuga.engine.encode import encode
from sakuga.training import objective
from sakuga.training.batches import Batches
from sakuga.training.config import IMAGE_TARGETS, TARGETS, TrainConfig
from sakuga.training.encoding import conditioning_tensors
from sakuga.training.preflight import preflight
from sakuga.training.prepared import LatentCache, PreparedSample, PreparedSet
from sakuga.training.trainer import Trainer
from sakuga.training.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("t2v", "two_experts", "i2v", "flf2v", "fun_inp", "ti2v", "vace", "control", "camera")
WITH_CLIP = ("i2v", "flf2v", "fun_inp")


def prepared(folder, engine, recipe, inputs) -> tuple[PreparedSet, LatentCache]:
    """One sample of random latents with the family's own conditioning."""
    with torch.no_grad():
        encoded = encode(engine.model.pipe, recipe, inputs)
    cache = LatentCache(folder, folder)
    latents = torch.randn(encoded.latents_BCTHW.shape[1:], generator=torch.Generator().manual_seed(0))
    cache.put("videos", "v", {"latents_CThw": latents, **conditioning_tensors(encoded)})
    cache.put("texts", "t", {"context_LD": encoded.conditioning.context_positive_BLD[0]})
    sample = PreparedSample(
        name="clip.mp4", split="train", video_key="v", text_key="t", prompt=recipe.prompt, width=recipe.width,
        height=recipe.height, num_frames=recipe.num_frames, fps=16.0,
    )  # fmt: skip
    found = PreparedSet(
        model=recipe.model, weights_sha256="w", task="t2v", samples=(sample,), empty_text_key="t", cache=str(folder)
    )
    return found, cache


def trainer_of(family, model, found, cache) -> Trainer:
    targets = (*TARGETS, *IMAGE_TARGETS) if family in WITH_CLIP else TARGETS
    config = TrainConfig(
        model=found.model, rank=4, num_steps=2, global_batch_size=4, base_precision="fp32", targets=targets, lr=1e-2
    )
    batches = Batches(found, cache, config, model.card, torch.device("cpu"))
    return Trainer(model, batches, config, World())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains(family, tokenizer_dir, tmp_path, monkeypatch):
    engine = LocalEngine(getattr(tiny_wan, f"tiny_{family}")(tokenizer_dir))
    recipe, inputs = task(family)
    found, cache = prepared(tmp_path, engine, recipe, inputs)
    with torch.no_grad():
        state = engine.start(recipe, inputs)
        expected = {
            low: engine._branch_velocity(state, "positive", torch.tensor(500.0), low_noise=low)[0]
            for low in range(len(engine.model.experts))
        }
    trainer = trainer_of(family, engine.model, found, cache)
    entries = trainer.batches.of_step(0, num_batches=1, index=0)[0][:1]
    batch = dataclasses.replace(
        trainer.batches.micro_batch(entries),
        latents_BCThw=state.latents_BCTHW,
        noise_BCThw=state.latents_BCTHW,
        sigma_B=torch.tensor([0.5]),
    )
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.amp.autocast("cpu", enabled=False))
    for expert, velocity in expected.items():
        with torch.no_grad():
            ours = trainer.module(dataclasses.replace(batch, expert=expert), raw=True)
        reference = ours.shape[1] - objective.patches(velocity).shape[1]  # tokens of a reference frame come first
        assert torch.allclose(ours[:, reference:], objective.patches(velocity), atol=1e-5)
    monkeypatch.undo()
    assert preflight(trainer).effect > 0
    reports = [trainer.train_step() for _ in range(2)]
    assert all(report.loss > 0 for report in reports)
    if family == "two_experts":
        moved = {name.split(".")[1] for name, p in trainer.trained.items() if "lora_B" in name and p.any()}
        assert moved == {"0", "1"}  # levels are stratified, so that both experts see some


def test_one_expert_of_two(tokenizer_dir, tmp_path):
    engine = LocalEngine(tiny_wan.tiny_two_experts(tokenizer_dir))
    found, cache = prepared(tmp_path, engine, *task("two_experts"))
    config = TrainConfig(model=found.model, rank=4, global_batch_size=4, base_precision="fp32", expert="low")
    batches = Batches(found, cache, config, engine.card, torch.device("cpu"))
    trainer = Trainer(engine.model, batches, config, World())
    assert {name.split(".")[1] for name in trainer.trained} == {"1"}
    entries = [entry for part in batches.of_step(0, num_batches=1, index=0) for entry in part]
    assert all(entry.sigma < engine.card.boundary_ratio for entry in entries)
    preflight(trainer)
