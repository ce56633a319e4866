"""What a training run is: one frozen value, checked when it is made, kept beside every checkpoint.

Not in it: folders, the number of workers and of micro-batches, which decide how fast a run is and not what it learns.

Run: pytest tests/unit/test_training_config.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sakuga.errors import TrainError, did_you_mean, shown
from sakuga.recipe.values import EXPERTS
from sakuga.training.prepared import LAYERS
from sakuga.wan.cards import ModelCard

MODES = ("lora", "full", "distill")
TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")
IMAGE_TARGETS = ("k_img", "v_img")
"""Of models whose blocks attend to a picture; DiffSynth's list of targets does not match them."""
BASE_PRECISIONS = ("fp32", "bf16", "int8", "fp8")
"""Of the frozen base under a LoRA. What is trained is fp32: in bf16 at a rate of 2e-5, 69 % of a LoRA's entries never
move."""
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
SCHEDULES = ("cosine", "constant")
CHECKPOINTING = ("none", "recompute", "offload")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Raises TrainError for a value that no run can use."""

    model: str = "wan-mini"
    mode: str = "lora"
    """lora, full, or distill: a LoRA that makes few steps without guidance do for many with it."""
    expert: str | None = None
    """"high" or "low" noise of a model with two; None: both, in one run."""

    rank: int = 16
    alpha: float | None = None
    """Scale of a LoRA is alpha / rank; None: as the rank, which DiffSynth's files mean when they do not say."""
    targets: tuple[str, ...] = TARGETS
    base_precision: str = "bf16"
    start_lora_sha256: str | None = None
    """Of the LoRA that the run goes on from."""

    num_steps: int = 1000
    global_batch_size: int = 8
    """Samples of a step, however many workers there are."""
    lr: float = 1e-4
    optimizer: str = "adamw"
    """adamw8bit has the moments of large tensors in 8 bits. torchao compiles its step: half a minute at the first one,
    and on a CPU a C++ compiler is needed."""
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup_steps: int = 20
    max_grad_norm: float = 1.0
    ema_decay: float | None = None
    """Of an exponential mean of what is trained, which is then what is saved; None: none."""
    seed: int = 0

    flow_shift: float = 5.0
    """Of the noise levels that are drawn, as Wan was trained."""
    loss_weighting: str = "wan"
    """wan: DiffSynth's bell over the timesteps, which hardly counts the noisy end; none: all alike."""
    text_dropout: float = 0.1
    """Share of samples that see the empty prompt, so that guidance has its other branch."""
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    """How much more a place counts that is of a layer of `LAYERS`; data without layer maps refuses it."""

    distill_steps: int = 4
    """Steps that a distilled LoRA is made for."""
    distill_guidance: float | None = None
    """Guidance that is folded in; None: the card's."""
    distill_intervals: int = 4
    """Places within each of those steps that are trained and must agree on where it ends; 1: its beginning alone."""
    teacher_steps: int = 3
    """Of the teacher, from one of those places to the next."""
    distill_source: str = "data"
    """data: each sample, noised, is one place; teacher: from its noise the teacher goes all the way, and the run learns
    at every place that it passes, which are those that a render passes."""
    still_share: float = 0.25
    """Of a distillation's training steps: the first ones see stills, the others videos."""
    style_lora_sha256: str | None = None
    """Of a LoRA that is beside the base, frozen, for `style_share` of a distillation's micro-batches."""
    style_share: float = 0.5

    checkpointing: str = "none"
    """none; recompute: activations of a block are made again in the backward pass; offload: kept on the host."""
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "layer_weights", dict(self.layer_weights))
        _one_of("mode", self.mode, MODES)
        _one_of("base_precision", self.base_precision, BASE_PRECISIONS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("checkpointing", self.checkpointing, CHECKPOINTING)
        _one_of("loss_weighting", self.loss_weighting, ("none", "wan"))
        _one_of("distill_source", self.distill_source, ("data", "teacher"))
        if self.expert is not None:
            _one_of("expert", self.expert, EXPERTS)
        for name in self.targets:
            _one_of("targets", name, (*TARGETS, *IMAGE_TARGETS))
        for name in self.layer_weights:
            _one_of("layer_weights", name, LAYERS)
        if not self.targets:
            raise TrainError(f"targets is empty; name some of {', '.join(TARGETS)}")
        for name, low in (("rank", 1), ("num_steps", 1), ("global_batch_size", 1), ("warmup_steps", 0), ("seed", 0)):
            _whole(name, getattr(self, name), low)
        for name in ("distill_steps", "distill_intervals", "teacher_steps"):
            _whole(name, getattr(self, name), 1)
        for name in ("lr", "max_grad_norm", "flow_shift"):
            _number(name, getattr(self, name), above=0)
        if self.alpha is not None:
            _number("alpha", self.alpha, above=0)
        if self.distill_guidance is not None:
            _number("distill_guidance", self.distill_guidance, low=1)
        _number("weight_decay", self.weight_decay, low=0)
        for name in ("text_dropout", "still_share", "style_share"):
            _number(name, getattr(self, name), low=0, high=1)
        for name, value in self.layer_weights.items():
            _number(f"layer_weights {name}", value, low=0)
        if self.ema_decay is not None:
            _number("ema_decay", self.ema_decay, low=0, high=1)
        if self.style_lora_sha256 is not None and self.mode != "distill":
            raise TrainError(f"a style LoRA goes beside a distillation, and mode is {self.mode}; leave it out")
        if self.mode == "full" and self.base_precision not in ("fp32", "bf16"):
            raise TrainError(f"mode full trains the base itself, which cannot be {self.base_precision}; take bf16")

    @property
    def scale(self) -> float:
        return (self.alpha if self.alpha is not None else self.rank) / self.rank

    @property
    def trains_lora(self) -> bool:
        return self.mode in ("lora", "distill")

    def check_card(self, card: ModelCard) -> None:
        """Raises TrainError for what this model cannot be trained with."""
        if self.expert is not None and not card.two_experts:
            raise TrainError(f"{card.name} has one expert, so leave expert out")
        if self.mode == "distill" and card.two_experts:
            raise TrainError(
                f"{card.name} has two experts, and a phase of a distillation would cross from one to the other; "
                "distill a model of one"
            )
        if self.trains_lora and self.rank > card.dit.dim:
            raise TrainError(
                f"rank {self.rank} is above the width of {card.name}, {card.dit.dim}; a LoRA has a smaller one, "
                "take 4 to 64, or mode full"
            )
        images = [name for name in self.targets if name in IMAGE_TARGETS]
        if images and not card.dit.num_image_tokens:
            raise TrainError(f"{card.name} has no {images[0]}: its blocks attend to no picture; leave it out")

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> TrainConfig:
        """Raises TrainError for an unknown field, with a guess."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise TrainError(f"a training run has no setting {shown(name)}{did_you_mean(name, known)}")
        return cls(**fields)  # ty: ignore[invalid-argument-type]  # each field is checked above

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def check_same(self, other: TrainConfig) -> None:
        """Raises TrainError unless a run with `other` can go on with this one's checkpoint.

        A run may be made longer; all else decides what its steps were.
        """
        ours, theirs = self.to_dict(), other.to_dict()
        for name in ours:
            if name not in ("num_steps", "checkpointing", "compile") and ours[name] != theirs[name]:
                raise TrainError(
                    f"the run was begun with {name} {shown(ours[name])} and is now given {shown(theirs[name])}; "
                    "give it another name, or the old setting"
                )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise TrainError(f"{name} is {shown(value)}{did_you_mean(str(value), known)}; it is one of {', '.join(known)}")


def _whole(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MAX_SEED:
        raise TrainError(f"{name} is {shown(value)}; it must be a whole number from {low} on")


def _number(
    name: str, value: object, *, low: float = -math.inf, above: float = -math.inf, high: float = math.inf
) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not low <= value <= high or not value > above:
        bounds = f"above {above:g}" if above > -math.inf else f"from {low:g}"
        top = f" to {high:g}" if high < math.inf else ""
        raise TrainError(f"{name} is {shown(value)}; it must be a finite number {bounds}{top}")
