"""Validation renders are the engine's own, from cached conditioning, with the files of a checkpoint."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sakuga.engine import LocalEngine
from sakuga.training.prepared import PreparedSet
from sakuga.training.validation import ValidationOptions, result_files, validate
from sakuga.wan.passport import LoraPassport
from tiny_training import prepared_set


@pytest.fixture(scope="module")
def engine():
    return LocalEngine.load("wan-mini")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


def scores(engine, folder, loras=(), **options):
    prepared = PreparedSet.read(folder)
    cache = prepared.open_cache(folder, folder)
    return validate(engine, prepared, cache, loras, ValidationOptions(num_samples=1, **options))


def lora(path, strength: float, passport: LoraPassport):
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in ("self_attn.q", "ffn.0"):
        for block in range(8):
            out = 768 if layer == "ffn.0" else 192
            tensors[f"blocks.{block}.{layer}.lora_A.default.weight"] = torch.randn(4, 192, generator=rng)
            tensors[f"blocks.{block}.{layer}.lora_B.default.weight"] = strength * torch.randn(out, 4, generator=rng)
    save_file(tensors, path, metadata=passport.to_metadata())
    return path


def test_renders_are_the_same_each_time_and_a_lora_changes_them(engine, folder, tmp_path):
    plain, again = (scores(engine, folder, num_steps=2) for _ in range(2))
    frames = plain.rows[1][1]
    assert np.array_equal(frames, again.rows[1][1])
    assert frames.shape == plain.rows[0][1].shape == (5, 32, 32, 3)
    changed = scores(engine, folder, [lora(tmp_path / "lora.safetensors", 0.1, LoraPassport())], num_steps=2)
    assert not np.array_equal(frames, changed.rows[1][1])
    assert set(plain.metrics) == {f"validation/{n}" for n in ("psnr_db", "ssim", "flicker", "motion", "seconds")}
    plain.save_sheet(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 500


def test_a_distilled_lora_is_rendered_as_it_wants_to_be(engine, folder, tmp_path, monkeypatch):
    seen = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda state: seen.append(state.recipe) or step(state))
    fast = LoraPassport(num_inference_steps=3, guidance_scale=1.0, flow_shift=5.0)
    scores(engine, folder, [lora(tmp_path / "lora.safetensors", 0.01, fast)])
    assert len(seen) == 3
    assert seen[0].guidance_scale == 1.0


def test_files_of_two_experts(tmp_path):
    for name in ("lora_low.safetensors", "lora_high.safetensors", "trained.safetensors"):
        (tmp_path / name).touch()
    assert [path.name for path in result_files(tmp_path)] == ["lora_high.safetensors", "lora_low.safetensors"]
