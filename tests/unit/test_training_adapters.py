"""LoRAs in and out: DiffSynth's keys, the scale baked in, and the same values back."""

import pytest
import torch
from safetensors import safe_open

from sakuga.errors import LoraError
from sakuga.training.adapters import save_lora
from sakuga.wan.loading import load_model
from sakuga.wan.lora_file import read_lora
from sakuga.wan.passport import LoraPassport, read_passport
from tiny_training import config, prepared_set, trainer_of, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


def expert_values(trainer) -> dict[str, torch.Tensor]:
    return {name.removeprefix("experts.0."): value for name, value in trainer.trained.items()}


def filled(folder, settings):
    trainer = trainer_of(folder, settings)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.trained.values():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=rng))
    return trainer


def test_only_the_adapter_trains_and_in_fp32(folder):
    trainer = trainer_of(folder, config(base_precision="bf16"))
    assert all(".lora_" in name for name in trainer.trained)
    assert {parameter.dtype for parameter in trainer.trained.values()} == {torch.float32}
    assert len(trainer.trained) == 8 * 10 * 2  # blocks, layers of a block, A and B


def test_file_has_the_values_with_the_scale_baked_in(folder, tmp_path):
    settings = config(rank=4, alpha=8.0)
    trainer = filled(folder, settings)
    path = tmp_path / "lora.safetensors"
    save_lora(expert_values(trainer), settings.scale, path, LoraPassport(rank=4))
    with safe_open(path, framework="pt") as file:
        assert "blocks.0.self_attn.q.lora_A.default.weight" in file.keys()  # noqa: SIM118
    lora = read_lora(path, load_model(weights(folder), precision="fp32", stages=("denoise",)).pipe.dit)
    layer = trainer.module.experts[0].blocks[0].self_attn.q
    found = lora.changes["blocks.0.self_attn.q.weight"].of(torch.zeros(192, 192))
    assert torch.allclose(found, layer.get_delta_weight("default"), rtol=1e-2, atol=1e-5)  # fp16
    assert read_passport(path).rank == 4


def test_a_run_goes_on_from_a_lora_file(folder, tmp_path):
    first = filled(folder, config(rank=4, alpha=8.0))
    path = tmp_path / "lora.safetensors"
    save_lora(expert_values(first), 2.0, path, LoraPassport())
    again = trainer_of(folder, config(rank=4), start_lora=path)
    layer, other = (t.module.experts[0].blocks[3].ffn[0] for t in (first, again))
    assert torch.allclose(layer.get_delta_weight("default"), other.get_delta_weight("default"), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    "changes, said", [({"rank": 8}, "rank 4"), ({"targets": ("q", "k")}, "would train 32"), ({}, None)]
)
def test_a_lora_of_other_settings_is_refused_as_start(folder, tmp_path, changes, said):
    path = tmp_path / "lora.safetensors"
    save_lora(expert_values(filled(folder, config())), 1.0, path, LoraPassport())
    if said is None:
        trainer_of(folder, config(), start_lora=path)
        return
    with pytest.raises(LoraError, match=said):
        trainer_of(folder, config(**changes), start_lora=path)
