"""The one cost model: seconds and bytes of a recipe on a plan, a card and a device, before anything is loaded.

Admission, queue order, routing, the ETA, the price and `sakuga estimate` all ask here. Seconds are operations divided
by a device's peaks and fitted efficiencies (`cost/devices.py`), plus exchanges between ranks and weights that come
from the host; bytes are counted tensors (`cost/footprint.py`). It loads no model and imports no torch.

Run: pytest tests/unit/test_cost.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sakuga.cost.devices import DeviceSpec, usable_bytes
from sakuga.cost.footprint import (
    QUANTIZED,
    Execution,
    PartBytes,
    Planned,
    StageBytes,
    blocks_on_device,
    model_parts,
    num_hot_loras,
    stages,
    value_bytes,
)
from sakuga.cost.work import encode_work, evaluation_work, has_vace, num_evaluations, num_tokens, vae_work

if TYPE_CHECKING:
    from sakuga.recipe import RenderRecipe
    from sakuga.wan.cards import ModelCard
    from sakuga.wan.memory import MemoryPlan

CHARS_PER_TOKEN = 4
"""Of an English prompt, for what is known of it before the tokenizer is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a render will take. Bytes are those of the fullest rank."""

    model: str
    device: str
    precision: str
    execution: Planned
    num_tokens: int
    num_steps: int
    num_evaluations: int
    """Runs of the DiT over all steps and both branches."""
    evaluation_flops: float
    """Of one run, on all ranks of a branch together, without a step cache."""
    denoise_flops: float
    """Of all steps, with the share of blocks that a step cache runs."""
    encode_s: float
    denoise_s: float
    decode_s: float
    exchange_s: float
    """Of `denoise_s`: between ranks."""
    transfer_s: float
    """Of all stages: weights on their way to the device, where the device waits for them."""
    parts: tuple[PartBytes, ...]
    stages: tuple[StageBytes, ...]
    memory_bytes: int
    measured: str
    """What the seconds are fitted to; empty where nothing was measured on such a device."""
    assumed: tuple[str, ...]
    """Sentences about what is taken for granted."""

    @property
    def total_s(self) -> float:
        return self.encode_s + self.denoise_s + self.decode_s

    @property
    def step_s(self) -> float:
        """Mean of the steps."""
        return self.denoise_s / self.num_steps

    @property
    def device_seconds(self) -> float:
        """What is paid for: all ranks wait for each other."""
        return self.total_s * self.execution.parallel.world_size

    @property
    def peak_bytes(self) -> int:
        return max(stage.total_bytes for stage in self.stages)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= usable_bytes(self.memory_bytes)


def estimate(
    recipe: RenderRecipe,
    card: ModelCard,
    execution: Execution,
    device: DeviceSpec,
    *,
    precision: str | None = None,
    block_share: float = 1.0,
) -> Estimate:
    """Seconds and bytes. `precision` is the recipe's unless given; `block_share` is what a step cache will run."""
    precision = precision or recipe.precision
    single, double = num_evaluations(recipe, card)
    evaluations = single + 2 * double
    text_tokens = card.tokenizer_max_tokens
    if not device.pads_text:
        text_tokens = min(text_tokens, len(recipe.prompt) // CHARS_PER_TOKEN + 2)
    tokens = num_tokens(recipe, card)
    rest, blocks = evaluation_work(card, tokens=tokens, text_tokens=text_tokens, vace=has_vace(recipe, card))
    done = rest + blocks * block_share

    plan = execution.parallel
    parts = model_parts(card, precision, num_hot_loras=num_hot_loras(recipe, execution, precision))
    exchange_s = _exchange_s(recipe, card, execution, device, precision) * block_share
    num_blocks = card.dit.num_layers + (card.dit.num_vace_layers if has_vace(recipe, card) else 0)
    compute_s = device.seconds(done * (1 / plan.sequence_degree), precision) + num_blocks * block_share * device.block_s
    block_transfer_s = _block_transfer_s(parts, execution.memory, device) * block_share
    ahead = execution.memory.kind == "layers"  # the next block's weights come while this one computes
    waiting_s = max(0.0, block_transfer_s - compute_s) if ahead else block_transfer_s
    in_turn = single + double * (1 if plan.cfg == 2 else 2)
    encode_transfer_s, denoise_transfer_s, decode_transfer_s = _part_transfer_s(parts, execution.memory, device)
    encoding = encode_work(recipe, card, guided=double > 0)
    decoding = vae_work(card, "decode", recipe.width, recipe.height, recipe.num_frames, recipe.tiling)
    return Estimate(
        model=card.name,
        device=device.name,
        precision=precision,
        execution=Planned.of(execution),
        num_tokens=tokens,
        num_steps=recipe.num_inference_steps,
        num_evaluations=evaluations,
        evaluation_flops=(rest + blocks).flops,
        denoise_flops=done.flops * evaluations,
        encode_s=device.seconds(encoding, precision) + encode_transfer_s,
        denoise_s=(compute_s + exchange_s + waiting_s) * in_turn + denoise_transfer_s,
        decode_s=device.seconds(decoding, precision) + decode_transfer_s,
        exchange_s=exchange_s * in_turn,
        transfer_s=waiting_s * in_turn + encode_transfer_s + denoise_transfer_s + decode_transfer_s,
        parts=parts,
        stages=stages(recipe, card, execution, precision),
        memory_bytes=device.memory_bytes,
        measured=device.measured,
        assumed=_assumptions(recipe, execution, device, precision, block_share),
    )


def _exchange_s(
    recipe: RenderRecipe, card: ModelCard, execution: Execution, device: DeviceSpec, precision: str
) -> float:
    """Between the ranks in one evaluation of all blocks: what a rank sends over its link, and the beginnings."""
    plan, dit = execution.parallel, card.dit
    sent_bytes, num_exchanges = 0.0, 0
    num_blocks = dit.num_layers + (dit.num_vace_layers if has_vace(recipe, card) else 0)
    tokens = -(-num_tokens(recipe, card) // plan.sequence_degree)
    hidden = tokens * dit.dim * value_bytes(precision)
    if plan.ulysses > 1:
        sent_bytes += num_blocks * 4 * hidden * (plan.ulysses - 1) / plan.ulysses  # q, k and v together, then back
        num_exchanges += 2 * num_blocks
    if plan.ring > 1:
        sent_bytes += num_blocks * 2 * hidden * (plan.ring - 1)
        num_exchanges += num_blocks * (plan.ring - 1)
    if plan.sequence_degree > 1:
        sent_bytes += tokens * dit.out_dim * 4 * value_bytes(precision) * (plan.sequence_degree - 1)
        num_exchanges += 1
    if plan.cfg == 2:
        sent_bytes += num_tokens(recipe, card) * dit.out_dim * 4 * 4
        num_exchanges += 1
    return sent_bytes / device.link_bytes_per_s + num_exchanges * device.exchange_s


def _block_transfer_s(parts: tuple[PartBytes, ...], memory: MemoryPlan, device: DeviceSpec) -> float:
    """Weights of the blocks that do not stay, once through the device."""
    dit = parts[0]
    passing_bytes = (dit.num_blocks - blocks_on_device(dit, memory)) * dit.block_bytes
    return passing_bytes / (device.disk_bytes_per_s if memory.kind == "disk" else device.host_bytes_per_s)


def _part_transfer_s(
    parts: tuple[PartBytes, ...], memory: MemoryPlan, device: DeviceSpec
) -> tuple[float, float, float]:
    """Before each stage, the parts that it needs and that do not stay on the device."""
    if memory.kind == "resident":
        return 0.0, 0.0, 0.0
    per_s = device.disk_bytes_per_s if memory.kind == "disk" else device.host_bytes_per_s
    dits = [part for part in parts if part.name in ("dit", "dit2")]
    coming = sum(
        part.total_bytes - (part.num_blocks - blocks_on_device(part, memory)) * part.block_bytes for part in dits
    )
    others = {part.name: part.total_bytes for part in parts if part not in dits}
    vae = others.pop("vae")
    return (sum(others.values()) + vae) / per_s, coming / per_s, vae / per_s


def _assumptions(
    recipe: RenderRecipe, execution: Execution, device: DeviceSpec, precision: str, block_share: float
) -> tuple[str, ...]:
    told = []
    if not device.measured:
        told.append(f"not measured on {device.name}: its peaks are the maker's, the share in use is the H100's")
    if execution.parallel.world_size > 1:
        told.append("all ranks are in one machine, and links reach 60 % of their peak")
    if execution.memory.kind in ("layers", "disk"):
        per_s = device.disk_bytes_per_s if execution.memory.kind == "disk" else device.host_bytes_per_s
        told.append(f"weights come at {per_s / 1e9:.0f} GB/s")
    if precision in QUANTIZED:
        how = (
            "products in 8 bits are not reckoned faster"
            if "dynamic" in precision
            else "weights are widened for each product"
        )
        told.append(f"{precision} is as fast as bf16: {how}")
    if recipe.step_cache is not None and block_share == 1:
        told.append("the step cache skips nothing; --block-share says how much it runs")
    if execution.compile:
        told.append("torch.compile changes nothing")
    return tuple(told)
