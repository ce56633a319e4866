"""Weights of a CPU as pages of their files: every process of a node shares the one copy in the page cache.

DiffSynth's own loader clones each tensor that it reads for a CPU, so every rank of a node would hold the model. Here it
is given tensors that are mapped, copy on write: a LoRA that is fused makes the pages that it changes private and leaves
the file alone. A model whose files have another precision than the pipeline is converted, into memory of each process;
store it in the precision that it runs in. Memory plans that keep parts on the host keep them mapped, except for blocks
that `layers` pins. With all of a model on a GPU nothing stays in host memory.

Kernels of a CPU round by alignment, and tensors of a safetensors file lie at any address, the same in every process: a
render has the same bits on all ranks, and in fp32 differs from one with cloned weights by 8e-7 in the latents.

A file must not be overwritten in place while a process has it mapped; replace it by renaming another one over it.
Run: pytest tests/dist/test_mapped.py
"""

import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch.utils.serialization import config


def can_map(path: Path) -> bool:
    """Safetensors, and .pth files since PyTorch 1.6; older ones are one stream of pickles."""
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def mapped_tensors(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, in one file or in shards, none of them read yet."""
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt", device="cpu") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        else:
            tensors |= torch.load(path, map_location="cpu", weights_only=True, mmap=can_map(path))
    return tensors


@contextmanager
def mapped_loads(paths: Sequence[Path]) -> Generator[None]:
    """Inside, `torch.load` maps: DiffSynth reads a whole .pth, 11 GB for the text encoder, to learn its key names."""
    with config.patch({"load.mmap": all(can_map(path) for path in paths)}):  # ty: ignore  # added at import
        yield
