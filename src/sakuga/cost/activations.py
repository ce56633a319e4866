"""What autograd keeps of `wan/forward.py` until the backward pass, operator by operator.

Under autocast products are bf16 and layer norms fp32; whoever wants a tensor in another type keeps a copy of its own:
each adapter behind a norm, where the norm is fp32. Bytes are held against `saved_tensors_hooks` by the test.

Pure arithmetic, no torch.     Run: pytest tests/unit/test_cost_training.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sakuga.wan.shapes import PATCH

if TYPE_CHECKING:
    from sakuga.wan.shapes import DitShape


VALUE = 2
"""Bytes of a number in bf16."""
FP32_ROTATION = 12
"""Of a number of q or k in the widest moment of its rotation: in fp32, rotated, and cast back."""
LAYERS_OF_TOKENS = {"q": 2, "o": 2}
"""Linear layers of a name in a block that see all tokens, where not one: keys and values of the text see its own."""
IMAGE_LAYERS = ("k_img", "v_img")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes on one rank, without copies of weights."""

    boundary: int
    """What goes from one block to the next: all that checkpointing keeps of a block."""
    block: int
    """Kept of a block without checkpointing."""
    outside: int
    """Kept by embedding and head, and the rotations, once."""
    widest: int
    """Alive on top in the widest moment of a block, forward or backward."""


def activations(
    dit: DitShape,
    *,
    tokens: int,
    text_tokens: int,
    image_tokens: int = 0,
    lora: tuple[int, tuple[str, ...]] | None,
    norms_fp32: bool = True,
) -> Activations:
    """`lora`: rank and targets, None where all weights are trained. CPUs under autocast leave norms in bf16."""
    norm = 4 if norms_fp32 else VALUE
    wide = dit.ffn_dim / dit.dim
    if lora:
        rank, targets = lora
        kept = _lora_block(targets, wide, norm, image=image_tokens > 0)
        text = 2 * VALUE + (4 if "k" in targets else 0)  # keys and values, and what the norm of trained keys saw
        image = 2 * VALUE + (4 if "k_img" in targets else 0) + VALUE * sum(name in targets for name in IMAGE_LAYERS)
        inner = rank * VALUE * (tokens * sum(LAYERS_OF_TOKENS.get(name, 1) for name in targets) + 2 * text_tokens)
    else:
        kept = _full_block(wide, norm, norms_fp32=norms_fp32, image=image_tokens > 0)
        text = image = 4 + 3 * VALUE
        inner = 0
    if dit.has_clean_frame:  # scales and gates are those of each token
        kept += 4 * VALUE
    scores = 4 * dit.num_heads * tokens * (3 if image_tokens else 2)  # the sums of each row
    hidden = tokens * dit.dim
    beside = dit.dim * (text_tokens * text + image_tokens * image) + inner + scores
    head = norm if lora else 2 * norm + VALUE
    latents = tokens * PATCH * dit.out_dim * (4 if lora else 4 + VALUE)  # the loss, and what a trained embedding saw
    if lora and "ffn.2" in lora[1]:  # an adapter's result before and after its scale, at the end of the forward pass
        widest = max(VALUE * wide, 3 * VALUE) + norm
    else:  # gradients before and after GELU, or a rotation
        widest = max(2 * VALUE * wide, FP32_ROTATION) + norm + 3.5
    return Activations(
        boundary=hidden * VALUE,
        block=round(hidden * kept + beside),
        outside=hidden * head + latents + tokens * 4 * dit.head_dim + text_tokens * dit.dim * VALUE,
        widest=round(hidden * widest),
    )


def _lora_block(targets: tuple[str, ...], wide: float, norm: int, *, image: bool) -> float:
    """Bytes per token and width. Frozen weights and norms' scales keep nothing but what their input needs."""
    attended = 4 * VALUE + 2 * VALUE  # q, k, v and result; q and result of the text's
    kept = 3 * norm + 3 * 4 + attended + VALUE * wide  # norms, RMS norms of q, k and the text's q, and GELU
    # Behind a norm, each adapter casts for itself, or all share what is bf16 already. `o` has attention's result.
    behind = [[name for name in group if name in targets] for group in (("q", "k", "v"), ("q",), ("ffn.0",))]
    kept += VALUE * sum(len(group) if norm != VALUE else bool(group) for group in behind)
    kept += VALUE * wide * ("ffn.2" in targets)
    return kept + (VALUE if image else 0)


def _full_block(wide: float, norm: int, *, norms_fp32: bool, image: bool) -> float:
    """Bytes per token and width. The scale of a norm keeps its result, and each gate what it opens for."""
    inputs = 3 * VALUE if norms_fp32 else VALUE  # of q, k and v, each cast for itself
    rms = 3 * (4 + VALUE)
    kept = 5 * norm + inputs + rms + 6 * VALUE + 2 * VALUE + 2 * VALUE + 2 * VALUE * wide
    if image:  # its result, the sum with the text's, and the fp32 q cast once more
        kept += 3 * VALUE
    return kept
