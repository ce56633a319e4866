"""Wan-mini: a small but real Wan, embedded with its trained weights.

Same classes, same loader and same state-dict names as the large models. `register()` tells DiffSynth's loader about
it; after that `WanVideoPipeline.from_pretrained(model_configs=[ModelConfig(path=...)])` loads it like any other.

Files of a model folder: `dit.safetensors`, `vae.safetensors`, `text_encoder.safetensors`, `tokenizer/`, `card.json`
and `loras/*.safetensors`. Weights are stored in fp16 (19 MB with the LoRA, 38 in fp32) and computed in fp32.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import torch
from diffsynth.configs import MODEL_CONFIGS
from diffsynth.core.loader.file import hash_state_dict_keys
from safetensors.torch import save_file

from sakuga.wan.mini.models import MiniConfig, MiniVideoVAE
from sakuga.wan.mini.tokenizer import save_tokenizer

__all__ = ["PARTS", "MiniConfig", "MiniVideoVAE", "mini_dir", "random_weights", "register"]

PARTS = ("dit", "vae", "text_encoder")


def mini_dir() -> Path:
    """The folder with the embedded weights (package data)."""
    return Path(str(files("sakuga.wan.mini") / "weights"))


def register(config: MiniConfig | None = None) -> None:
    """Add Wan-mini to DiffSynth's table of known checkpoints; a second call changes nothing.

    Twice the same hash in the table would load the model twice, and the pipeline would believe in two experts.
    """
    config = config or MiniConfig()
    with torch.device("meta"):
        parts = {"dit": config.build_dit(), "vae": config.build_vae(), "text_encoder": config.build_text_encoder()}
    known = {entry["model_hash"] for entry in MODEL_CONFIGS}
    classes = {
        "dit": "diffsynth.models.wan_video_dit.WanModel",
        "vae": "sakuga.wan.mini.models.MiniVideoVAE",
        "text_encoder": "diffsynth.models.wan_video_text_encoder.WanTextEncoder",
    }
    for name, module in parts.items():
        model_hash = hash_state_dict_keys(module.state_dict())
        if model_hash not in known:
            MODEL_CONFIGS.append(
                {
                    "model_hash": model_hash,
                    "model_name": f"wan_video_{name}",
                    "model_class": classes[name],
                    "extra_kwargs": asdict(getattr(config, name)),
                }
            )


def save_part(module: torch.nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write one network as fp16 safetensors."""
    state = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in module.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=metadata)
    path.chmod(0o644)  # safetensors writes 0600, which nobody else could read once it is installed


def random_weights(folder: Path, seed: int = 0, config: MiniConfig | None = None) -> Path:
    """Write a complete model folder with random weights, for tests that need a model but not its skill."""
    config = config or MiniConfig()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_part(config.build_dit(), folder / "dit.safetensors")
        save_part(config.build_vae(), folder / "vae.safetensors")
        save_part(config.build_text_encoder(), folder / "text_encoder.safetensors")
    save_tokenizer(folder / "tokenizer", config.text_encoder.vocab)
    return folder
