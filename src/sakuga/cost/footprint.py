"""How many bytes of a device a render needs: weights under a memory plan, and what the stages make on top.

The peak of a stage is the sum of the tensors that are alive in its widest moment, counted on the engine's own forward
pass; it is that of rank 0, the one that encodes and decodes.

Pure arithmetic, no torch.     Run: pytest tests/unit/test_cost_counts.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sakuga.cost.work import encoded_videos, has_clean_frame, has_vace, num_tokens, tiles
from sakuga.parallel.plan import ParallelPlan
from sakuga.wan.memory import MemoryPlan
from sakuga.wan.shapes import CAMERA_DIM, CLIP_PARAMS, VACE_IN_DIM

if TYPE_CHECKING:
    from sakuga.recipe import RenderRecipe
    from sakuga.wan.cards import ModelCard

QUANTIZED = ("int8", "int8-dynamic", "fp8", "fp8-dynamic")
SCALE_BYTES = 4
"""Of the scale of a row of quantized weights."""
HOT_LORA_RANK = 64
"""Of a LoRA kept beside the weights, whose file a recipe knows by hash only; distilled LoRAs have 32 to 64."""
TEXT_BYTES_PER_SCORE = 20
"""Alive in the text encoder for each pair of tokens and head: 15.3 in bf16, 18.5 in fp32, counted on UMT5-XXL."""
CACHED_HIDDEN = {"teacache": 1}
"""Hidden states that a step cache keeps for each branch; the other kinds keep latents."""


class Execution(Protocol):
    """What of the engine's `ExecutionPlan` costs something; the engine stands above this package."""

    @property
    def parallel(self) -> ParallelPlan: ...

    @property
    def memory(self) -> MemoryPlan: ...

    @property
    def compile(self) -> bool: ...

    @property
    def hot_loras(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """An execution without an engine, for whoever only reckons."""

    parallel: ParallelPlan = field(default_factory=ParallelPlan)
    memory: MemoryPlan = field(default_factory=MemoryPlan)
    compile: bool = False
    hot_loras: bool = False

    @classmethod
    def of(cls, execution: Execution) -> Planned:
        return cls(
            parallel=execution.parallel,
            memory=execution.memory,
            compile=execution.compile,
            hot_loras=execution.hot_loras,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PartBytes:
    """One network's weights in a precision."""

    name: str
    """dit, dit2, text_encoder, image_encoder, motion_controller, vae or loras."""
    total_bytes: int
    block_bytes: int = 0
    """Of one block; 0 where a part is not split in blocks."""
    num_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """What is on the device in one stage."""

    stage: str
    """encode, denoise or decode."""
    weight_bytes: int
    work_bytes: int
    """Activations, the state of the render and what a step cache remembers."""

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.work_bytes


def value_bytes(precision: str) -> int:
    """Of a number in activations, and in weights that are not quantized."""
    return 4 if precision == "fp32" else 2


def model_parts(card: ModelCard, precision: str, *, num_hot_loras: int = 0) -> tuple[PartBytes, ...]:
    """Weights of all networks of a card. The VACE branch counts as part of the DiT."""
    size, dit = value_bytes(precision), card.dit
    block = dit.block_params * size
    if precision in QUANTIZED:
        unquantized = (dit.block_params - dit.block_linear_params) * size
        block = dit.block_linear_params + dit.block_linear_rows * SCALE_BYTES + unquantized
    num_blocks = dit.num_layers + dit.num_vace_layers
    other = (dit.other_params(card.in_dim) + dit.num_vace_layers * dit.dim * (dit.dim + 1)) * size
    experts = ("dit", "dit2") if card.two_experts else ("dit",)
    parts = [
        PartBytes(name=name, total_bytes=other + num_blocks * block, block_bytes=block, num_blocks=num_blocks)
        for name in experts
    ]
    parts.append(PartBytes(name="text_encoder", total_bytes=card.text_encoder.num_params * size))
    if card.needs_clip:
        parts.append(PartBytes(name="image_encoder", total_bytes=CLIP_PARAMS * size))
    if card.controls_speed:
        parts.append(PartBytes(name="motion_controller", total_bytes=dit.motion_params * size))
    parts.append(PartBytes(name="vae", total_bytes=card.vae.num_params * size))
    if num_hot_loras:
        wide = dit.num_layers * (8 * 2 * dit.dim + 2 * (dit.dim + dit.ffn_dim)) * HOT_LORA_RANK * size
        parts.append(PartBytes(name="loras", total_bytes=num_hot_loras * len(experts) * wide))
    return tuple(parts)


def num_hot_loras(recipe: RenderRecipe, execution: Execution, precision: str) -> int:
    """LoRAs beside the weights: when asked for, and always where those are quantized, to which nothing can be added."""
    return len(recipe.loras) if execution.hot_loras or precision in QUANTIZED else 0


def blocks_on_device(part: PartBytes, plan: MemoryPlan) -> int:
    """Blocks that stay on the device: all of them, as many as the budget holds, or none."""
    if plan.kind == "disk":
        return 0
    if plan.kind == "layers" and part.num_blocks:
        return min(part.num_blocks, (plan.budget_bytes or 0) // part.block_bytes)
    return part.num_blocks


def part_on_device(part: PartBytes, plan: MemoryPlan) -> int:
    """Bytes of a part while it is at work, with the blocks that pass through: the current one and, ahead, the next."""
    staying = blocks_on_device(part, plan)
    passing = min(part.num_blocks - staying, 1 if plan.kind == "disk" else 2)
    return part.total_bytes - (part.num_blocks - staying - passing) * part.block_bytes


def stages(
    recipe: RenderRecipe, card: ModelCard, execution: Execution, precision: str
) -> tuple[StageBytes, StageBytes, StageBytes]:
    """Encode, denoise and decode on rank 0."""
    plan = execution.memory
    num_loras = num_hot_loras(recipe, execution, precision)
    parts = {part.name: part for part in model_parts(card, precision, num_hot_loras=num_loras)}
    everything = sum(part.total_bytes for part in parts.values())
    resident = plan.kind == "resident"
    lora_bytes = parts["loras"].total_bytes if "loras" in parts else 0

    def weights(name: str) -> int:
        return everything if resident else part_on_device(parts[name], plan)

    encoders = {"text_encoder": text_bytes(card), "vae": encode_bytes(recipe, card, precision)}
    if card.needs_clip:
        encoders["image_encoder"] = 0  # 257 tokens: less than the text
    # The widest of the encoders, not the sum: they take turns.
    name = max(encoders, key=lambda part: weights(part) + encoders[part])
    denoise = weights("dit") + (0 if resident else lora_bytes)
    state = state_bytes(recipe, card, precision)
    return (
        StageBytes(stage="encode", weight_bytes=weights(name), work_bytes=encoders[name]),
        StageBytes(
            stage="denoise",
            weight_bytes=denoise,
            work_bytes=state + denoise_bytes(recipe, card, execution, precision),
        ),
        StageBytes(
            stage="decode", weight_bytes=weights("vae"), work_bytes=state + decode_bytes(recipe, card, precision)
        ),
    )


def text_bytes(card: ModelCard) -> int:
    return card.text_encoder.num_heads * card.tokenizer_max_tokens**2 * TEXT_BYTES_PER_SCORE


def encode_bytes(recipe: RenderRecipe, card: ModelCard, precision: str) -> int:
    """Of the VAE on the longest video that it encodes, which the pipeline holds once more."""
    frames = max(encoded_videos(recipe, card), default=0)
    if frames == 0:
        return 0
    per_pixel, per_frame = card.vae.encode_values
    return _vae_bytes(recipe, card, precision, per_pixel + per_frame * frames, whole_values=3 * frames)


def decode_bytes(recipe: RenderRecipe, card: ModelCard, precision: str) -> int:
    """Of the VAE; tiles are put together on the host, from where the video never comes back."""
    per_pixel, per_frame = card.vae.decode_values
    return _vae_bytes(recipe, card, precision, per_pixel + per_frame * recipe.num_frames, whole_values=0)


def _vae_bytes(
    recipe: RenderRecipe, card: ModelCard, precision: str, values_per_pixel: float, *, whole_values: int
) -> int:
    largest = max(width * height for width, height in tiles(card, recipe.width, recipe.height, recipe.tiling))
    values = largest * values_per_pixel + recipe.width * recipe.height * whole_values
    return round(values * value_bytes(precision))


def state_bytes(recipe: RenderRecipe, card: ModelCard, precision: str) -> int:
    """Latents before and after a step and two velocities in fp32, the conditioning and two embedded prompts."""
    size = value_bytes(precision)
    voxels = num_tokens(recipe, card) * 4
    conditioning = card.in_dim - card.z_dim
    conditioning += (VACE_IN_DIM if has_vace(recipe, card) else 0) + (CAMERA_DIM if card.dit.has_camera else 0)
    prompts = 2 * (card.tokenizer_max_tokens + card.dit.num_image_tokens) * (card.dit.dim + card.dit.text_dim) * size
    return voxels * (4 * 4 * card.z_dim + conditioning * size) + prompts


def denoise_bytes(recipe: RenderRecipe, card: ModelCard, execution: Execution, precision: str) -> int:
    """The widest moment of one evaluation on this rank's tokens, and the memory of a step cache."""
    whole = num_tokens(recipe, card)
    degree = execution.parallel.sequence_degree
    tokens = -(-whole // degree)
    hidden = tokens * card.dit.dim * value_bytes(precision)
    work = evaluation_bytes(
        card,
        precision,
        tokens=tokens,
        vace=has_vace(recipe, card),
        clean_frame=has_clean_frame(recipe, card),
        ulysses=execution.parallel.ulysses,
        ring=execution.parallel.ring,
    )
    if degree > 1:
        # Every rank embeds the whole video and then takes its part, of which the whole stays the storage.
        work += (whole - tokens) * (card.dit.dim * value_bytes(precision) + 4 * card.dit.head_dim)
    if precision in ("int8", "fp8"):
        work += card.dit.dim * card.dit.ffn_dim * 2  # the weight at work, widened
    kind = None if recipe.step_cache is None else recipe.step_cache.kind
    branches = 1 if execution.parallel.cfg == 2 else 2
    return work + CACHED_HIDDEN.get(kind or "", 0) * branches * hidden


def evaluation_bytes(
    card: ModelCard,
    precision: str,
    *,
    tokens: int,
    vace: bool = False,
    clean_frame: bool = False,
    ulysses: int = 1,
    ring: int = 1,
) -> int:
    """Alive at once in a block, in hidden states (one number per token and width) of the rank's tokens.

    Always: the embedded video, the first block's result, the block's input, the stream and its normed form. On top the
    widest of the feed-forward (before and after its activation), an RMS norm in fp32, or the exchange of q, k and v.
    """
    dit, size = card.dit, value_bytes(precision)
    held = 5 + (2 if vace else 0) + (6 if clean_frame else 0)
    norm = 2 + (4 * 2 / size if size < 4 else 1)
    widest = max(2 * dit.ffn_dim / dit.dim, norm)
    if ulysses > 1:
        widest = max(widest, 11)
    if ring > 1:
        widest = max(widest, 7 + 4 * 4 / size)
    rotation = 4 * dit.head_dim
    return round(tokens * ((held + widest) * dit.dim * size + rotation))
