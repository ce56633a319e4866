"""A model of two blocks and a LoRA for two of its layers, shared by the tests of LoRA files and of switching."""

import torch

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
