"""What a training step takes: bytes by part, operations, seconds and exchanges of a plan on a card and a device.

Text encoder and VAE are not on the device, since latents and embeddings are cached. Activations are those that
autograd keeps in `wan/forward.py` (`cost/activations.py`); the peak is the fuller of two moments, the end of the
forward pass and the first block of the backward pass.

Pure arithmetic, no torch.     Run: pytest tests/unit/test_cost_training.py
"""

from __future__ import annotations

from dataclasses import Field, dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from sakuga.cost.activations import Activations, activations
from sakuga.cost.devices import DeviceSpec, usable_bytes
from sakuga.cost.footprint import QUANTIZED, model_parts
from sakuga.cost.work import Work, evaluation_work
from sakuga.errors import TrainError

if TYPE_CHECKING:
    from sakuga.wan.cards import ModelCard

STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2.03, "muon": 4.0}
"""Of an optimizer for each trained number: two moments, two in 8 bits with a scale for 256, one momentum."""
TRAINING_SHARE = 0.6
"""Of the speed that a render reaches. Assumed: published are 0.5 (14B, Megatron on H100s, 326 TFLOP/s) and 0.65 (1.3B,
DiffSynth on an A100, 132 TFLOP/s) of what the fitted efficiencies of renders give."""
ATTENTION_BACKWARD = 2.5
"""Five products instead of two, since scores are made again (Dao et al. 2022)."""
DISTILL_EVALUATIONS = 7
"""Without gradient, beside the student: three steps of the teacher under both prompts, and the jump of the student's
mean; as the settings are when nothing is said."""
GATHERED_BLOCKS = 2
"""Whole on the device under FSDP: the one at work and the one that is fetched ahead."""
MACHINE_SIZES = (2, 4, 8)
"""Of GPUs, that advice names."""
MAX_FRAMES = 4 * 1024 + 1


class Settings(Protocol):
    """What of a `TrainConfig` costs something; training stands above this package."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]  # so that advice can change some

    @property
    def mode(self) -> str: ...
    @property
    def expert(self) -> str | None: ...
    @property
    def rank(self) -> int: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def base_precision(self) -> str: ...
    @property
    def checkpointing(self) -> str: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def ema_decay(self) -> float | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """A step of a training run and the ranks that share it. Raises TrainError for ranks that cannot."""

    settings: Settings
    width: int
    height: int
    num_frames: int
    micro_batch: int = 1
    """Samples of a rank at once."""
    num_gpus: int = 1
    fsdp: bool = False
    """All weights, gradients and states are shared out; else every rank has them whole."""
    ulysses: int = 1
    """Ranks that share one sample's attention heads; the others have samples of their own."""
    accumulates: bool = True
    """A step has several micro-batches, so that gradients of earlier ones are there when activations are fullest."""
    norms_fp32: bool = True
    """As GPUs under autocast have them; a CPU leaves norms in bf16."""

    def check(self, card: ModelCard) -> None:
        card.check_geometry(self.width, self.height, self.num_frames)
        for name in ("micro_batch", "num_gpus", "ulysses"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name} is {getattr(self, name)}; it must be a whole number from 1 on")
        if self.num_gpus % self.ulysses:
            raise TrainError(
                f"ulysses {self.ulysses} does not divide the number of GPUs, {self.num_gpus}; "
                f"give --num-gpus {self.ulysses}"
            )
        if card.dit.num_heads % self.ulysses:
            raise TrainError(f"ulysses {self.ulysses} does not divide the {card.dit.num_heads} heads of {card.name}")
        if self.fsdp and self.num_gpus == 1:
            raise TrainError(
                "FSDP shares weights out among several GPUs and there is one; give --num-gpus, or leave it"
            )

    @property
    def trains_lora(self) -> bool:
        return self.settings.mode != "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBytes:
    """On the fullest rank; `host_bytes` beside it."""

    frozen: int
    trained: int
    gradients: int
    early: int
    """Of the gradients, those beside all activations; of one micro-batch alone, what outgrows the activations that its
    backward pass has used up by then."""
    optimizer: int
    ema: int
    copies: int
    """In bf16, of fp32 weights, which autocast makes and keeps to the end of the forward pass, under FSDP too."""
    kept: int
    """Activations of all blocks that wait for the backward pass."""
    block: int
    """Of one block, made again; 0 without checkpointing, where `kept` has them."""
    widest: int
    """On top in the widest moment of a block, and what FSDP has gathered."""
    conditioning: int
    host: int
    """Checkpoints, each in pinned memory, which PyTorch hands out in powers of two."""
    sent: int
    """Of them, to the host and back again."""

    @property
    def peak(self) -> int:
        standing = self.frozen + self.trained + self.optimizer + self.ema + self.conditioning + self.kept + self.widest
        # Without checkpointing autograd holds the copies through the backward pass.
        forward, backward = self.copies, self.early + (self.block or self.copies)
        return standing + max(forward, backward)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainEstimate:
    model: str
    device: str
    plan: TrainPlan
    num_tokens: int
    """Of a sample."""
    num_trained: int
    """Numbers that are trained."""
    parts: TrainBytes
    step_flops: float
    """Of a micro-batch on all ranks that share it."""
    compute_s: float
    exchange_s: float
    transfer_s: float
    """Checkpoints to the host and back."""
    memory_bytes: int
    largest_num_frames: int
    """That fits, all else as asked; 0 where not even one does."""
    assumed: tuple[str, ...]

    @property
    def step_s(self) -> float:
        return self.compute_s + self.exchange_s + self.transfer_s

    @property
    def fits(self) -> bool:
        return self.parts.peak <= usable_bytes(self.memory_bytes)


def estimate_training(plan: TrainPlan, card: ModelCard, device: DeviceSpec) -> TrainEstimate:
    """Bytes and seconds of one micro-batch, forward, backward and update. Raises TrainError and GeometryError."""
    plan.check(card)
    work = step_work(plan, card)
    compute_s = device.seconds(work * (1 / plan.ulysses), "bf16") / TRAINING_SHARE
    parts = train_bytes(plan, card)
    return TrainEstimate(
        model=card.name,
        device=device.name,
        plan=plan,
        num_tokens=_tokens(plan, card),
        num_trained=num_trained(plan, card),
        parts=parts,
        step_flops=work.flops,
        compute_s=compute_s,
        exchange_s=_exchange_s(plan, card, device, compute_s),
        transfer_s=2 * parts.sent / device.host_bytes_per_s,
        memory_bytes=device.memory_bytes,
        largest_num_frames=largest_num_frames(plan, card, device.memory_bytes),
        assumed=_assumptions(plan, device),
    )


def largest_num_frames(plan: TrainPlan, card: ModelCard, memory_bytes: int) -> int:
    """Of the form 4n + 1; 0 where nothing fits."""
    low, high = 0, (MAX_FRAMES - 1) // 4 + 1  # latent frames: `low` fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = train_bytes(replace(plan, num_frames=4 * middle - 3), card).peak <= usable_bytes(memory_bytes)
        low, high = (middle, high) if fits else (low, middle - 1)
    return 4 * low - 3 if low else 0


def advise_training(plan: TrainPlan, card: ModelCard, memory_bytes: int) -> str:
    """What would fit, in words: the first change that is enough, and the frames that fit as asked."""
    changes = [{}, *_changes(plan)]
    alone = replace(plan, micro_batch=1)
    options: list[tuple[dict[str, str], TrainPlan]] = [({}, alone)] if plan.micro_batch > 1 else []
    options += [(change, plan) for change in changes]
    options += [(change, alone) for change in changes] if plan.micro_batch > 1 else []
    options += [
        (changes[-1], replace(alone, num_gpus=size, fsdp=True))
        for size in MACHINE_SIZES
        if size >= plan.num_gpus and size % plan.ulysses == 0
    ]
    ways = []
    for change, asked in options:
        changed = replace(asked, settings=replace(plan.settings, **change))
        if train_bytes(changed, card).peak <= usable_bytes(memory_bytes):
            words = ["micro batch 1"] if asked.micro_batch < plan.micro_batch else []
            words += [f"{name.replace('_', ' ')} {value}" for name, value in change.items()]
            words += [f"FSDP on {asked.num_gpus} GPUs"] if replace(asked, micro_batch=plan.micro_batch) != plan else []
            ways.append(" and ".join(words))
            break
    frames = largest_num_frames(plan, card, memory_bytes)
    ways += [f"{frames} frames"] if frames else []
    return f"it fits with {', or with '.join(ways)}" if ways else "take a smaller model or size"


def leaner(plan: TrainPlan) -> str:
    """The cheapest way to fewer bytes than predicted, in words: for whoever ran out of memory all the same."""
    if plan.micro_batch > 1:
        return f"take a micro-batch of {plan.micro_batch // 2}"
    changes = _changes(plan)
    if not changes:
        return "take fewer frames, a smaller size or a smaller model, or end what else uses the device"
    return "take " + " and ".join(f"{name.replace('_', ' ')} {value}" for name, value in changes[0].items())


def _changes(plan: TrainPlan) -> list[dict[str, str]]:
    """Settings that need fewer bytes, the cheapest in time first and the leanest last."""
    settings = plan.settings
    kinds = {"none": ("recompute", "offload"), "recompute": ("offload",), "offload": ()}[settings.checkpointing]
    less = [{"checkpointing": kind} for kind in kinds]
    smaller: dict[str, str] = {}
    if plan.trains_lora and settings.base_precision not in QUANTIZED:
        smaller = {"base_precision": "int8"}
    elif not plan.trains_lora and settings.optimizer != "adamw8bit":
        smaller = {"optimizer": "adamw8bit"}
    return less + ([change | smaller for change in ({}, *less)] if smaller else [])


def num_trained(plan: TrainPlan, card: ModelCard) -> int:
    """Numbers; both experts' where both are trained."""
    if not plan.trains_lora:
        return _num_experts(plan, card) * card.dit.num_params(card.in_dim)
    return _num_experts(plan, card) * card.dit.num_layers * _block_lora_params(plan, card)


def train_bytes(plan: TrainPlan, card: ModelCard) -> TrainBytes:
    """Of a step on one rank."""
    settings, experts = plan.settings, _num_experts(plan, card)
    trained, shards = num_trained(plan, card), plan.num_gpus if plan.fsdp else 1
    dit = model_parts(card, settings.base_precision)[0]
    frozen = experts * dit.total_bytes if plan.trains_lora else 0
    acts = _activations(plan, card)
    num_blocks = card.dit.num_layers + (0 if plan.trains_lora else card.dit.num_vace_layers)
    checkpoints = num_blocks * acts.boundary
    gathered = 0
    if plan.fsdp:
        gathered = GATHERED_BLOCKS * (dit.block_bytes if plan.trains_lora else 4 * card.dit.block_params)
    # A weight that is no bf16 is widened for each product, and autograd keeps what it was widened to.
    widens = not plan.trains_lora or settings.base_precision != "bf16"
    widened = 2 * card.dit.block_linear_params if widens else 0
    recompute = settings.checkpointing != "none"
    copies = 2 * trained // experts
    kept = {"none": num_blocks * acts.block, "recompute": checkpoints, "offload": 0}[settings.checkpointing]
    gradients = 4 * trained // shards
    return TrainBytes(
        frozen=frozen // shards,
        trained=4 * trained // shards,
        gradients=gradients,
        early=gradients if plan.accumulates else max(0, gradients - kept),
        optimizer=round(STATE_BYTES[settings.optimizer] * trained) // shards,
        # The target of a distillation is such a mean too.
        ema=4 * trained // shards if settings.ema_decay is not None or settings.mode == "distill" else 0,
        copies=copies + (num_blocks * widened if plan.trains_lora and not recompute else 0),
        kept=acts.outside + kept,
        block=acts.block + widened if recompute else 0,
        widest=acts.widest + gathered,
        conditioning=_conditioning_bytes(plan, card),
        host=num_blocks * 2 ** (acts.boundary - 1).bit_length() if settings.checkpointing == "offload" else 0,
        sent=checkpoints if settings.checkpointing == "offload" else 0,
    )


def step_work(plan: TrainPlan, card: ModelCard) -> Work:
    """Operations of a micro-batch: forward, again where blocks are checkpointed, and backward."""
    rest, blocks = evaluation_work(
        card, tokens=_tokens(plan, card), text_tokens=card.tokenizer_max_tokens, vace=card.dit.num_vace_layers > 0
    )
    evaluation = rest + blocks
    again = 0 if plan.settings.checkpointing == "none" else 1
    without = DISTILL_EVALUATIONS if plan.settings.mode == "distill" else 0
    # Gradients of inputs are as much work as the forward pass, those of weights as much again.
    backward = 1 if plan.trains_lora else 2
    own = 2 * num_trained(plan, card) / _num_experts(plan, card) * _tokens(plan, card) if plan.trains_lora else 0
    work = Work(
        linear_flops=evaluation.linear_flops * (1 + again + without + backward) + own * (1 + again + 2),
        attention_flops=evaluation.attention_flops * (1 + again + without + ATTENTION_BACKWARD),
    )
    return work * plan.micro_batch


def _exchange_s(plan: TrainPlan, card: ModelCard, device: DeviceSpec, compute_s: float) -> float:
    """Gradients among all ranks, hidden states among those of a sample; gathered weights where they come too late."""
    if plan.num_gpus == 1:
        return 0.0
    share = (plan.num_gpus - 1) / plan.num_gpus
    gradients = 4 * num_trained(plan, card)
    num_blocks, waiting_s, num_exchanges = card.dit.num_layers, 0.0, 1
    if plan.fsdp:
        weights = model_parts(card, plan.settings.base_precision)[0].total_bytes if plan.trains_lora else gradients
        gathered_s = 2 * share * weights / device.link_bytes_per_s + 2 * num_blocks * device.exchange_s
        waiting_s = max(0.0, gathered_s - compute_s)
        sent = share * gradients
    else:
        sent = 2 * share * gradients
    if plan.ulysses > 1:
        passes = 2 if plan.settings.checkpointing == "none" else 3
        hidden = _activations(plan, card).boundary
        sent += passes * num_blocks * 4 * hidden * (plan.ulysses - 1) / plan.ulysses
        num_exchanges += 2 * passes * num_blocks
    return sent / device.link_bytes_per_s + num_exchanges * device.exchange_s + waiting_s


def _activations(plan: TrainPlan, card: ModelCard) -> Activations:
    return activations(
        card.dit,
        tokens=plan.micro_batch * -(-_tokens(plan, card) // plan.ulysses),
        text_tokens=plan.micro_batch * card.tokenizer_max_tokens,
        image_tokens=plan.micro_batch * card.dit.num_image_tokens,
        lora=(plan.settings.rank, plan.settings.targets) if plan.trains_lora else None,
        norms_fp32=plan.norms_fp32,
    )


def _block_lora_params(plan: TrainPlan, card: ModelCard) -> int:
    """Both matrices of every target of a block; q, k, v and o are there twice."""
    dit, rank = card.dit, plan.settings.rank
    sides = {"ffn.0": dit.dim + dit.ffn_dim, "ffn.2": dit.dim + dit.ffn_dim, "k_img": 2 * dit.dim, "v_img": 2 * dit.dim}
    return sum(rank * sides.get(target, 4 * dit.dim) for target in plan.settings.targets)


def _conditioning_bytes(plan: TrainPlan, card: ModelCard) -> int:
    """Latents, noise, their mixture and the velocity, what is given beside them, and the prompt; in fp32."""
    voxels = plan.micro_batch * _tokens(plan, card) * 4
    beside = card.in_dim - card.z_dim
    prompt = (card.tokenizer_max_tokens + card.dit.num_image_tokens) * card.dit.text_dim * plan.micro_batch
    return 4 * (voxels * (4 * card.z_dim + beside) + prompt)


def _num_experts(plan: TrainPlan, card: ModelCard) -> int:
    return 2 if card.two_experts and plan.settings.expert is None else 1


def _tokens(plan: TrainPlan, card: ModelCard) -> int:
    _, _, frames, rows, columns = card.latent_shape(plan.width, plan.height, plan.num_frames)
    return frames * (rows // 2) * (columns // 2)


def _assumptions(plan: TrainPlan, device: DeviceSpec) -> tuple[str, ...]:
    told = [f"no training was measured on {device.name}: {TRAINING_SHARE:.0%} of the speed that renders reach there"]
    if plan.settings.base_precision in QUANTIZED:
        told.append("8-bit weights are widened for each product, and cost no time")
    if plan.settings.checkpointing == "offload":
        told.append(f"checkpoints pass at {device.host_bytes_per_s / 1e9:.0f} GB/s while nothing is computed")
    if plan.num_gpus > 1:
        told.append("all GPUs are in one machine; gradients are exchanged after the backward pass, not during it")
    if plan.settings.mode == "distill":
        told.append(f"{DISTILL_EVALUATIONS} evaluations without gradient beside the student's")
    return tuple(told)
