"""Precisions: in which numbers a model's weights are kept and its products are made.

| name | weights of the blocks | everything else, and the sums |
|---|---|---|
| `fp32`, `bf16`, `fp16` | the same | the same |
| `int8`, `fp8` | 8 bits, widened for each product | bf16 |
| `int8-dynamic`, `fp8-dynamic` | 8 bits; inputs rounded to 8 bits by row as they come | bf16 |

Quantization is DiffSynth's `QuantizeConfig` on torchao. Which layers of the DiT keep bf16 is said by the card.

Run: pytest tests/unit/test_precision.py
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sakuga.errors import PrecisionError

if TYPE_CHECKING:
    from diffsynth.core import QuantizeConfig

FP8_PRODUCTS = (8, 9)
"""Compute capability from which a GPU multiplies fp8 (Ada, Hopper)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What a name means."""

    dtype: torch.dtype
    """Of weights that are not quantized, of activations and of conditioning."""
    method: str | None = None
    """Of DiffSynth's quantization, for the DiT's linear layers."""


PRECISIONS = {
    "fp32": Precision(dtype=torch.float32),
    "bf16": Precision(dtype=torch.bfloat16),
    "fp16": Precision(dtype=torch.float16),
    "int8": Precision(dtype=torch.bfloat16, method="torchao_int8_w8a16"),
    "int8-dynamic": Precision(dtype=torch.bfloat16, method="torchao_int8_w8a8"),
    "fp8": Precision(dtype=torch.bfloat16, method="torchao_fp8_w8a16"),
    "fp8-dynamic": Precision(dtype=torch.bfloat16, method="torchao_fp8_w8a8"),
}


def check_precision(name: str, device: torch.device) -> Precision:
    """What the name means here. Raises PrecisionError where this machine cannot compute in it; nothing falls back."""
    precision = PRECISIONS[name]
    if precision.method is None:
        return precision
    if importlib.util.find_spec("torchao") is None:
        raise PrecisionError(f"precision '{name}' needs the package torchao; pip install 'sakuga[quant]', or take bf16")
    if name == "fp8-dynamic" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_PRODUCTS):
        raise PrecisionError(
            f"precision 'fp8-dynamic' needs a GPU that multiplies fp8 (compute capability 8.9) and this engine runs "
            f"on {device}; take fp8 or int8-dynamic"
        )
    return precision


def quantization(precision: Precision, kept: Sequence[str]) -> "QuantizeConfig | None":
    """DiffSynth's configuration, for a ModelConfig; `kept` are the names of linear layers that stay as they are."""
    if precision.method is None:
        return None
    from diffsynth.core import QuantizeConfig

    return QuantizeConfig(method=precision.method, exclude_modules=list(kept))


def is_quantized(parameter: torch.Tensor) -> bool:
    """Whether nothing can be added to it: torchao's tensors hold integers and scales."""
    return type(parameter) not in (torch.Tensor, torch.nn.Parameter)
