"""Attention by name: which kernel the Wan DiT uses is said in the recipe, never by what is installed.

DiffSynth's `wan_video_dit.flash_attention` takes the first kernel whose package can be imported; on a machine without
a GPU that is sageattention, which then fails. The DiT looks the function up in its module at every call, so replacing
it there covers self-attention, cross-attention and VACE. "auto" is always SDPA: exact, on every device, and it does
not change when somebody installs a package.

Shapes: q, k, v are (B, S, N * D) with N heads of size D.     Run: pytest tests/unit/test_attention.py
"""

import importlib
import importlib.util
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch.nn import functional

from sakuga.errors import AttentionError

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""q, k, v as (B, S, N * D) and the number of heads N; the result is (B, S, N * D)."""

EXACT = ("sdpa", "fa2", "fa3")
"""Kernels that differ from each other by rounding only."""
LOSSY = ("sage",)
"""Kernels that quantize inside; used when named, never by "auto"."""
SAGE_HEAD_DIMS = (64, 96, 128)
"""What sageattention 1.0.6 accepts."""

_PACKAGES = {"sage": "sageattention", "fa2": "flash_attn", "fa3": "flash_attn_interface"}


def resolve_attention(name: str, *, device: torch.device, head_dim: int, dtype: torch.dtype) -> str:
    """The kernel that `name` stands for on this device.

    Raises AttentionError when the name is unknown, or when the kernel cannot run here; there is no fallback.
    """
    if name in ("auto", "sdpa"):
        return "sdpa"
    if name not in _PACKAGES:
        raise AttentionError(f"attention '{name}' is unknown; choose one of auto, {', '.join(EXACT + LOSSY)}")
    if device.type != "cuda":
        raise AttentionError(f"attention '{name}' needs a CUDA device and this engine runs on {device}; use 'sdpa'")
    if importlib.util.find_spec(_PACKAGES[name]) is None:
        raise AttentionError(f"attention '{name}' needs the package {_PACKAGES[name]}; install it or use 'sdpa'")
    if dtype not in (torch.float16, torch.bfloat16):
        raise AttentionError(f"attention '{name}' needs fp16 or bf16, not {dtype}; change the precision or use 'sdpa'")
    if name == "sage" and head_dim not in SAGE_HEAD_DIMS:
        raise AttentionError(f"attention 'sage' takes head sizes {SAGE_HEAD_DIMS}, this model has {head_dim}")
    return name


def kernel(name: str) -> Attention:
    """The function of a resolved name."""
    return _KERNELS[name]


@contextmanager
def attention(name: str) -> Generator[None]:
    """DiffSynth's DiT uses this resolved kernel inside the block.

    The replaced function belongs to the process, so two threads must not render with different kernels.
    """
    from diffsynth.models import wan_video_dit

    kernel = _KERNELS[name]

    def flash_attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, compatibility_mode: bool = False
    ) -> torch.Tensor:
        chosen = sdpa if compatibility_mode else kernel
        return chosen(q, k, v, num_heads)

    replaced = {"flash_attention": flash_attention, "SAGE_ATTN_AVAILABLE": False}
    before = {name: getattr(wan_video_dit, name) for name in replaced}
    vars(wan_video_dit).update(replaced)
    try:
        yield
    finally:
        vars(wan_video_dit).update(before)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    """PyTorch's own attention: exact, on every device and for every head size."""
    q, k, v = (_heads_first(tensor, num_heads) for tensor in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _fa2(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    flash_attn = importlib.import_module("flash_attn")
    q, k, v = (tensor.unflatten(2, (num_heads, -1)) for tensor in (q, k, v))
    return flash_attn.flash_attn_func(q, k, v).flatten(2)


def _fa3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    flash_attn_interface = importlib.import_module("flash_attn_interface")
    q, k, v = (tensor.unflatten(2, (num_heads, -1)) for tensor in (q, k, v))
    out = flash_attn_interface.flash_attn_func(q, k, v)
    return (out[0] if isinstance(out, tuple) else out).flatten(2)


def _sage(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    from sageattention import sageattn

    q, k, v = (_heads_first(tensor, num_heads) for tensor in (q, k, v))
    # sageattention 1.0.6 subtracts the mean from k in place; the caller may use k again.
    return sageattn(q, k.clone(), v).transpose(1, 2).flatten(2)


def _heads_first(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


_KERNELS: dict[str, Attention] = {"sdpa": sdpa, "fa2": _fa2, "fa3": _fa3, "sage": _sage}
