"""A model of two blocks and a LoRA for two of its layers, shared by the tests of LoRA files and of switching."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from sakuga.wan.weights import file_sha256

RANK, WIDTH = 4, 8
Q, FFN = "blocks.0.self_attn.q", "blocks.1.ffn.0"
TARGETS = (Q, FFN)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = torch.nn.Module()
        self.self_attn.q = torch.nn.Linear(WIDTH, WIDTH)
        self.ffn = torch.nn.Sequential(torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.GELU())
        self.norm3 = torch.nn.LayerNorm(WIDTH)


def make_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(Block() for _ in range(2))
    return model


def make_tensors(seed: int = 1) -> dict[str, torch.Tensor]:
    """A and B of both targets, by "target.A" and "target.B"."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target, out in ((Q, WIDTH), (FFN, 2 * WIDTH)):
        tensors[f"{target}.A"] = torch.randn(RANK, WIDTH, generator=generator)
        tensors[f"{target}.B"] = torch.randn(out, RANK, generator=generator)
    return tensors


def lora_for(dit: torch.nn.Module, path: Path, rank: int = 4, seed: int = 1) -> tuple[Path, str]:
    """A random LoRA for two layers of each of a DiT's blocks that shows in a render; its path and sha256."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name in [f"blocks.{index}.{layer}" for index in range(len(dit.blocks)) for layer in ("self_attn.q", "ffn.0")]:
        out, inner = dit.get_parameter(f"{name}.weight").shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inner, generator=generator) / inner**0.5
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / rank**0.5
    save_file(tensors, path)
    return path, file_sha256(path)
