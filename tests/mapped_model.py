"""A Wan-mini wide enough that its weights stand out from the memory of a Python process: 190 MB in fp32."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from sakuga.wan.cards import CardFile
from sakuga.wan.catalogue import card
from sakuga.wan.loading import LoadedModel, WeightSet, load_model
from sakuga.wan.mini import PARTS, MiniConfig, register
from sakuga.wan.mini.models import DitConfig
from sakuga.wan.mini.tokenizer import save_tokenizer
from sakuga.wan.weights import WeightPart

CONFIG = MiniConfig(dit=DitConfig(dim=960, ffn_dim=3840, num_heads=20, num_layers=3))


def save_large(folder: Path, suffix: str) -> int:
    """Random weights in fp32, as safetensors or as .pth; the size of the DiT's file."""
    save_tokenizer(folder / "tokenizer", CONFIG.text_encoder.vocab)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part in PARTS:
            state = getattr(CONFIG, f"build_{part}")().state_dict()
            path = folder / f"{part}{suffix}"
            save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return (folder / f"dit{suffix}").stat().st_size


def load_large(folder: Path, suffix: str, precision: str = "fp32") -> LoadedModel:
    register(CONFIG)
    files = [WeightPart(file=_file(part), paths=(folder / f"{part}{suffix}",)) for part in PARTS]
    tokenizer = tuple(sorted((folder / "tokenizer").iterdir()))
    parts = (*files, WeightPart(file=_file("tokenizer"), paths=tokenizer))
    base = replace(card("wan-mini"), embedded=False)
    return load_model(WeightSet(card=base, parts=parts, sha256="ab" * 32, file_sha256={}), precision=precision)


def _file(part: str) -> CardFile:
    return CardFile(part=part, model_id="x", pattern=part)
