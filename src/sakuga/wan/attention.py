"""Attention by name: which kernel the Wan DiT uses is said in the recipe, never by what is installed.

DiffSynth's `wan_video_dit.flash_attention` takes the first kernel whose package can be imported; on a machine without
a GPU that is sageattention, which then fails. The DiT looks the function up in its module at every call, so replacing
it there covers self-attention, cross-attention and VACE. "auto" is the fastest of the exact kernels that this device
has, by measurement: `wan/attention_choice.py`.

Shapes: q, k, v are (B, S, N * D) with N heads of size D.     Run: pytest tests/unit/test_attention.py
"""

import importlib
import importlib.util
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from sakuga.errors import AttentionError, did_you_mean, shown

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""q, k, v as (B, S, N * D) and the number of heads N; the result is (B, S, N * D)."""

EXACT = ("sdpa", "cudnn", "flash2", "flash3", "flash4", "xformers")
"""Kernels that differ from each other by rounding only; "auto" is one of them."""
LOSSY = ("sage",)
"""Kernels that quantize inside; used when named, never by "auto"."""
SAGE_HEAD_DIMS = (64, 96, 128)
"""What sageattention 1.0.6 accepts."""

_PACKAGES = {
    "sage": "sageattention",
    "flash3": "flash_attn_interface",
    "flash4": "flash_attn.cute",
    "xformers": "xformers",
}
"""What a kernel comes from; the others are part of PyTorch."""


def check_attention(name: str, *, device: torch.device, head_dim: int, dtype: torch.dtype) -> None:
    """Raises AttentionError when the name is unknown, or when the kernel cannot run here; there is no fallback."""
    if name == "sdpa":
        return
    if name not in _KERNELS:
        hint = did_you_mean(name, _KERNELS) or f"; choose one of auto, {', '.join(EXACT + LOSSY)}"
        raise AttentionError(f"attention {shown(name)} is unknown{hint}")
    if device.type != "cuda":
        raise AttentionError(f"attention '{name}' needs a CUDA device and this engine runs on {device}; use 'sdpa'")
    if name in _PACKAGES and not _is_installed(_PACKAGES[name]):
        raise AttentionError(f"attention '{name}' needs the package {_PACKAGES[name]}; install it or use 'sdpa'")
    if dtype not in (torch.float16, torch.bfloat16):
        raise AttentionError(f"attention '{name}' needs fp16 or bf16, not {dtype}; change the precision or use 'sdpa'")
    if name == "sage" and head_dim not in SAGE_HEAD_DIMS:
        raise AttentionError(f"attention 'sage' takes head sizes {SAGE_HEAD_DIMS}, this model has {head_dim}")


def usable_kernels(*, device: torch.device, head_dim: int, dtype: torch.dtype) -> tuple[str, ...]:
    """The exact kernels that this machine has for this model."""
    usable = []
    for name in EXACT:
        try:
            check_attention(name, device=device, head_dim=head_dim, dtype=dtype)
        except AttentionError:
            continue
        usable.append(name)
    return tuple(usable)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a.b, when there is no a
        return False


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


def products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, bias_L: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention by two products, in the precision of `v`: the one to train with on a CPU.

    In bf16 the fused kernel's backward takes 101 ms there where this one's takes 28.
    """
    q, k, v = (_heads_first(x.to(v.dtype), num_heads) for x in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = torch.softmax(scores if bias_L is None else scores + bias_L.to(scores.dtype), dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)


def training_kernel(device: torch.device) -> Attention:
    """An exact kernel with a backward, whatever is installed."""
    return products if device.type == "cpu" else sdpa_as_values


def sdpa_as_values(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`sdpa` in the precision of `v`: under autocast the normed q and k are fp32, for which there is no fast kernel."""
    return sdpa(q.to(v.dtype), k.to(v.dtype), v, num_heads)


def _by_backend(backend: SDPBackend) -> Attention:
    """One of the kernels that PyTorch's attention chooses from."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v, num_heads)

    return run


def _by_package(module_name: str, function_name: str) -> Attention:
    """A kernel that takes (B, S, N, D); some versions give the log-sum-exp as well."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
        function = getattr(importlib.import_module(module_name), function_name)
        out = function(*(tensor.unflatten(2, (num_heads, -1)) for tensor in (q, k, v)))
        return (out[0] if isinstance(out, tuple) else out).flatten(2)

    return run


def _sage(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    from sageattention import sageattn

    q, k, v = (_heads_first(tensor, num_heads) for tensor in (q, k, v))
    # sageattention 1.0.6 subtracts the mean from k in place; the caller may use k again.
    return sageattn(q, k.clone(), v).transpose(1, 2).flatten(2)


def _heads_first(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


_KERNELS: dict[str, Attention] = {
    "sdpa": sdpa,
    "cudnn": _by_backend(SDPBackend.CUDNN_ATTENTION),
    "flash2": _by_backend(SDPBackend.FLASH_ATTENTION),
    "flash3": _by_package("flash_attn_interface", "flash_attn_func"),
    "flash4": _by_package("flash_attn.cute", "flash_attn_func"),
    "xformers": _by_package("xformers.ops", "memory_efficient_attention"),
    "sage": _sage,
}
