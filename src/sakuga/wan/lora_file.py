"""LoRA files, read strictly: every tensor finds its place in the model or the file is refused.

DiffSynth's own loader skips what it does not understand without a word. Understood here:

| keys | written by |
|---|---|
| `blocks.0.self_attn.q.lora_A[.default].weight`, behind any of `PREFIXES` | DiffSynth, peft, ComfyUI |
| `transformer.blocks.0.attn1.to_q.lora_A.weight` | diffusers |
| `lora_unet_blocks_0_self_attn_q.lora_down.weight` | kohya and its heirs |
| `.alpha`, or `lora_alpha` and `use_rslora` in metadata or `adapter_config.json` | scale alpha / rank or / sqrt(rank) |
| `lora_magnitude_vector`, `dora_scale` | DoRA (Liu et al. 2024, arXiv 2402.09353) |
| `hada_w1_a` ... | LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098), LyCORIS' names |
| `lokr_w1` ... | LoKr (Yeh et al. 2023, arXiv 2309.14859), LyCORIS' names |
| `.diff`, `.diff_b` | whole differences of weights and biases, as acceleration LoRAs carry them for norms |

Shapes: A (rank, in), B (out, rank), weight (out, in).     Run: pytest tests/unit/test_lora_file.py
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from sakuga.errors import LoraError, WeightsError
from sakuga.wan.weights import check_safetensors, file_sha256

PREFIXES = re.compile(r"^(?:base_model\.model\.|diffusion_model\.|transformer\.|model\.diffusion_model\.|pipe\.dit\.)+")
KOHYA_PREFIX = "lora_unet_"
LORA_PARTS = {"lora_A": "A", "lora_down": "A", "lora_B": "B", "lora_up": "B"}
MAGNITUDES = ("lora_magnitude_vector", "dora_scale")
LOHA_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
DIFFERENCES = {"diff": "weight", "diff_b": "bias"}
_PART = "|".join((*LORA_PARTS, *MAGNITUDES, *LOHA_PARTS, *LOKR_PARTS, *DIFFERENCES, "alpha"))
KEY = re.compile(rf"(?P<target>.+?)(?:\.module)?\.(?P<part>{_PART})(?:\.default)?(?:\.weight)?")
DIFFUSERS_NAMES = (
    (r"\battn1\.", "self_attn."),
    (r"\battn2\.", "cross_attn."),
    (r"\.to_(q|k|v)\b", r".\1"),
    (r"\.to_out\.0\b", ".o"),
    (r"\.add_(k|v)_proj\b", r".\1_img"),
    (r"\bffn\.net\.0\.proj\b", "ffn.0"),
    (r"\bffn\.net\.2\b", "ffn.2"),
    (r"^condition_embedder\.time_embedder\.linear_1\b", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2\b", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1\b", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2\b", "text_embedding.2"),
    (r"^condition_embedder\.time_proj\b", "time_projection.1"),
    (r"^proj_out\b", "head.head"),
)
"""Of diffusers' `WanTransformer3DModel`, to Wan's own."""
MAX_NAMED = 3
"""Tensors that an error names; the rest is counted."""


class Change(Protocol):
    """What a LoRA does to one parameter."""

    @property
    def rank(self) -> int | None: ...

    def of(self, base: torch.Tensor) -> torch.Tensor:
        """Difference to the base parameter, both in fp32 on one device, at strength 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """LoRA: scale * B @ A (Hu et al. 2021)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def of(self, base: torch.Tensor) -> torch.Tensor:
        return _like(base, self.b) @ (_like(base, self.a) * self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hadamard:
    """LoHa: the element-wise product of two low-rank matrices."""

    w1_a: torch.Tensor
    w1_b: torch.Tensor
    w2_a: torch.Tensor
    w2_b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    def of(self, base: torch.Tensor) -> torch.Tensor:
        one, two = (_like(base, a) @ _like(base, b) for a, b in ((self.w1_a, self.w1_b), (self.w2_a, self.w2_b)))
        return one * two * self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Kronecker:
    """LoKr: the Kronecker product of two matrices, each whole (one factor) or low-rank (two)."""

    w1: tuple[torch.Tensor, ...]
    w2: tuple[torch.Tensor, ...]
    scale: float

    @property
    def rank(self) -> int | None:
        ranks = [factors[1].shape[0] for factors in (self.w1, self.w2) if len(factors) == 2]
        return ranks[0] if ranks else None

    def of(self, base: torch.Tensor) -> torch.Tensor:
        one, two = (
            _like(base, factors[0]) @ _like(base, factors[1]) if len(factors) == 2 else _like(base, factors[0])
            for factors in (self.w1, self.w2)
        )
        return torch.kron(one, two) * self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The whole change, stored as it is."""

    values: torch.Tensor

    @property
    def rank(self) -> None:
        return None

    def of(self, base: torch.Tensor) -> torch.Tensor:
        return _like(base, self.values).view(base.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposed:
    """DoRA: the changed weight, with the length of its rows (or columns) trained apart."""

    inner: Change
    magnitude: torch.Tensor
    """(out), (out, 1) for rows or (1, in) for columns."""

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    def of(self, base: torch.Tensor) -> torch.Tensor:
        changed = base + self.inner.of(base)
        by_column = self.magnitude.ndim == 2 and self.magnitude.shape[0] == 1 and base.shape[0] != 1
        length = changed.norm(dim=0 if by_column else 1, keepdim=True)
        wanted = _like(base, self.magnitude).view(length.shape)
        return changed * (wanted / length) - base


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA file that fits a model, whole."""

    path: Path
    sha256: str
    changes: Mapping[str, Change]
    """By parameter name of the DiT."""
    num_tensors: int
    metadata: Mapping[str, str]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({change.rank for change in self.changes.values() if change.rank is not None}))


def read_lora(path: Path, model: torch.nn.Module) -> Lora:
    """Read a LoRA for this DiT.

    Raises LoraError when a tensor has no place in the model, has no partner, has another shape or is not finite, when
    the rank is 0, or when the file is damaged or no safetensors file.
    """
    return fit_lora(path, {name: param.shape for name, param in model.named_parameters()})


def fit_lora(path: Path, shapes: Mapping[str, torch.Size]) -> Lora:
    """As `read_lora`, for a DiT of which only the names and shapes of its parameters are known."""
    try:
        check_safetensors(path)
    except OSError as error:
        raise LoraError(f"LoRA {path} cannot be read: {error.strerror}; check the path") from error
    except WeightsError as error:
        raise LoraError(error.message) from error
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    parts = _by_target(path, tensors, shapes)
    scaling = _Scaling.of(path, metadata)
    changes: dict[str, Change] = {}
    for target, found in parts.items():
        changes |= _changes_of(path, target, found, scaling, shapes)
    return Lora(path=path, sha256=file_sha256(path), changes=changes, num_tensors=len(tensors), metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaling:
    """How alpha and rank make the scale, where the file's tensors do not say it."""

    alpha: float | None
    rank: int | None
    """Of the configuration; what a LoKr of two whole factors has no matrix for."""
    rslora: bool

    @classmethod
    def of(cls, path: Path, metadata: Mapping[str, str]) -> "_Scaling":
        """From diffusers' metadata, or from peft's configuration beside the file."""
        config: dict = {}
        beside = path.with_name("adapter_config.json")
        try:
            if "lora_adapter_metadata" in metadata:
                raw = json.loads(metadata["lora_adapter_metadata"])
                config = {key.rpartition(".")[2]: value for key, value in raw.items()}
            elif path.name == "adapter_model.safetensors" and beside.is_file():
                config = json.loads(beside.read_text(encoding="utf-8"))
            alpha, rank = config.get("lora_alpha", config.get("alpha")), config.get("r")
            return cls(
                alpha=None if alpha is None else float(alpha),
                rank=None if rank is None else int(rank),
                rslora=bool(config.get("use_rslora", False)),
            )
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise LoraError(f"LoRA {path} has an unreadable configuration ({error}); export it again") from error

    def scale(self, path: Path, target: str, alpha: torch.Tensor | None, rank: int) -> float:
        if rank == 0:
            raise LoraError(f"LoRA {path} has rank 0 in {target}; it changes nothing, export it again")
        value = self.alpha if alpha is None else float(alpha)
        if value is None:
            return 1.0
        if not math.isfinite(value):
            raise LoraError(f"LoRA {path} has the alpha {value} in {target}; export it again")
        return value / (math.sqrt(rank) if self.rslora else rank)


def _by_target(
    path: Path, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]
) -> dict[str, dict[str, torch.Tensor]]:
    """The parts of each module's change; LoraError for a tensor that fits nowhere or is not finite."""
    modules = {name.rpartition(".")[0] for name in shapes}
    by_kohya = {name.replace(".", "_"): name for name in modules}
    found: dict[str, dict[str, torch.Tensor]] = {}
    lost = []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        target = module_name(match["target"], by_kohya) if match else ""
        if match is None or target not in modules:
            lost.append(key)
            continue
        if not torch.isfinite(tensor).all():
            raise LoraError(
                f"LoRA {path} has NaN or infinite values in {key}; its training diverged, use an earlier one"
            )
        part = "magnitude" if match["part"] in MAGNITUDES else LORA_PARTS.get(match["part"], match["part"])
        found.setdefault(target, {})[part] = tensor
    if lost:
        raise LoraError(
            f"LoRA {path} does not fit this model: {len(tensors) - len(lost)} of {len(tensors)} tensors have a place, "
            f"none for {_named(lost)}; it was made for another model or in an unknown format"
        )
    if not found:
        raise LoraError(f"LoRA {path} holds no tensor; export it again")
    return found


def module_name(written: str, by_kohya: Mapping[str, str]) -> str:
    """Wan's name of a layer as a file writes it; kohya's says no dots, so `by_kohya` has what it can mean."""
    if written.startswith(KOHYA_PREFIX):
        flat = written.removeprefix(KOHYA_PREFIX)
        return by_kohya.get(flat, written)
    name = PREFIXES.sub("", written)
    for pattern, ours in DIFFUSERS_NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _changes_of(
    path: Path, target: str, parts: dict[str, torch.Tensor], scaling: _Scaling, shapes: Mapping[str, torch.Size]
) -> dict[str, Change]:
    """Changes of a module's weight and bias; LoraError for parts that are missing, left over or of another shape."""
    rest = dict(parts)
    changes: dict[str, Change] = {}
    for part, parameter in DIFFERENCES.items():
        if part in rest:
            changes[parameter] = Difference(values=rest.pop(part))
    alpha, magnitude = rest.pop("alpha", None), rest.pop("magnitude", None)
    if rest:
        weight = _factors(path, target, rest, scaling, alpha)
        if magnitude is not None:
            weight, magnitude = Decomposed(inner=weight, magnitude=magnitude), None
        if "weight" in changes:
            raise LoraError(f"LoRA {path} has a difference and a low-rank change for {target}; export it again")
        changes["weight"] = weight
    elif alpha is not None or magnitude is not None:
        raise LoraError(
            f"LoRA {path} has a scale but no change for {target}; the file is not complete, export it again"
        )
    named = {f"{target}.{parameter}": change for parameter, change in changes.items()}
    for name, change in named.items():
        _check_shape(path, name, change, shapes)
    return named


def _factors(
    path: Path, target: str, parts: dict[str, torch.Tensor], scaling: _Scaling, alpha: torch.Tensor | None
) -> Change:
    names = set(parts)
    if any(tensor.ndim != 2 for tensor in parts.values()):
        raise LoraError(f"LoRA {path} has tensors for {target} that are no matrices; convolutions are not supported")
    if names == {"A", "B"}:
        rank = parts["A"].shape[0]
        return LowRank(a=parts["A"], b=parts["B"], scale=scaling.scale(path, target, alpha, rank))
    if names == set(LOHA_PARTS):
        rank = parts["hada_w1_b"].shape[0]
        w1_a, w1_b, w2_a, w2_b = (parts[name] for name in LOHA_PARTS)
        scale = scaling.scale(path, target, alpha, rank)
        return Hadamard(w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b, scale=scale)
    if names <= set(LOKR_PARTS):
        sides = [
            (parts[side],) if side in names else (parts[f"{side}_a"], parts[f"{side}_b"])
            for side in ("lokr_w1", "lokr_w2")
            if side in names or {f"{side}_a", f"{side}_b"} <= names
        ]
        if len(sides) == 2 and sum(map(len, sides)) == len(parts):
            ranks = [factors[1].shape[0] for factors in sides if len(factors) == 2]
            if ranks:
                scale = scaling.scale(path, target, alpha, ranks[0])
            else:  # LyCORIS leaves alpha out of account where both factors are whole, peft does not
                scale = scaling.scale(path, target, None, scaling.rank) if scaling.rank else 1.0
            return Kronecker(w1=sides[0], w2=sides[1], scale=scale)
    raise LoraError(
        f"LoRA {path} has {', '.join(sorted(names))} for {target}, where parts are lacking; the file is not complete, "
        "export it again"
    )


def _check_shape(path: Path, name: str, change: Change, shapes: Mapping[str, torch.Size]) -> None:
    if name not in shapes:
        raise LoraError(f"LoRA {path} changes {name}, which this model does not have; it was made for another model")
    try:
        fits = change.of(torch.empty(shapes[name], device="meta")).shape == shapes[name]  # shapes only, no numbers
    except RuntimeError:  # matrices that do not go together
        fits = False
    if not fits:
        raise LoraError(
            f"LoRA {path} has a change of another shape for {name}, which is {tuple(shapes[name])}; "
            "it was made for a model of another size"
        )


def _like(base: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x.to(device=base.device, dtype=base.dtype)


def _named(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
