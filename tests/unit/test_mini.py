"""Wan-mini is loaded by DiffSynth's own loader like any other checkpoint."""

from collections import Counter

import pytest
import torch
from diffsynth.configs import MODEL_CONFIGS
from diffsynth.core import ModelConfig
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.pipelines.wan_video import WanVideoPipeline

from sakuga.wan.mini import PARTS, MiniConfig, MiniVideoVAE, mini_dir, random_weights, register


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("mini"))


def load(folder):
    register()
    return WanVideoPipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(path=str(folder / f"{part}.safetensors")) for part in PARTS],
        tokenizer_config=ModelConfig(path=str(folder / "tokenizer")),
    )


def test_diffsynth_loads_it_with_its_own_classes(folder):
    pipe = load(folder)
    assert type(pipe.dit) is WanModel
    assert type(pipe.text_encoder) is WanTextEncoder
    assert type(pipe.vae) is MiniVideoVAE
    assert pipe.dit2 is None, "registered twice, the model would be loaded as two experts"
    assert (pipe.height_division_factor, pipe.width_division_factor) == (16, 16)


def test_registering_twice_changes_nothing():
    register()
    register()
    hashes = Counter(entry["model_hash"] for entry in MODEL_CONFIGS if "sakuga" in entry["model_class"])
    assert list(hashes.values()) == [1]


def test_vae_compresses_4x8x8_and_is_causal():
    torch.manual_seed(0)
    vae = MiniConfig().build_vae()
    video = torch.rand(3, 17, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = vae.encode([video], device="cpu")[0]
        assert latents.shape == (16, 5, 4, 6)
        assert vae.decode([latents], device="cpu")[0].shape == video.shape
        short = vae.encode([video[:, :9]], device="cpu")[0]
    assert torch.allclose(short, latents[:, :3], atol=1e-5), "a later frame changed an earlier latent"


def test_statistics_travel_with_the_weights(tmp_path):
    vae = MiniConfig().build_vae()
    vae.mean.copy_(torch.arange(16.0))
    vae.std.copy_(torch.arange(1.0, 17.0))
    other = MiniConfig().build_vae()
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.scale[0], vae.mean)
    assert torch.equal(other.scale[1], 1 / vae.std)


def test_random_weights_follow_the_seed(tmp_path, folder):
    again = random_weights(tmp_path / "again")
    other = random_weights(tmp_path / "other", seed=1)
    first = (folder / "dit.safetensors").read_bytes()
    assert (again / "dit.safetensors").read_bytes() == first
    assert (other / "dit.safetensors").read_bytes() != first


def test_tokenizer_knows_the_dancers_words_and_any_other_text(folder):
    tokenizer = load(folder).tokenizer.tokenizer
    assert len(tokenizer("pink twin tails").input_ids) == 4  # three words and the end
    for text in ("", "Tänzerin 舞 🎉", "a" * 600):
        ids = tokenizer(text).input_ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]).strip() == text.lower().strip()


def test_package_data_is_small_enough_to_ship():
    total = sum(path.stat().st_size for path in mini_dir().rglob("*.safetensors"))
    assert 0 < total <= 24_000_000
    for part in PARTS:
        assert (mini_dir() / f"{part}.safetensors").is_file()
