"""LoRA: read strictly, fuse by weight, take out again to the same bits.

DiffSynth's own loader skips what it does not understand without a word; here every tensor of the file must find its
place or the file is refused. Understood: DiffSynth and peft keys (`blocks.0.self_attn.q.lora_A[.default].weight`, also
behind `diffusion_model.`, `transformer.` or `base_model.model.`), dotted `lora_down`/`lora_up`, kohya's `lora_unet_*`,
and `.alpha`.

Shapes: A (rank, in), B (out, rank), weight (out, in).     Run: pytest tests/unit/test_lora.py
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from sakuga.errors import LoraError, ModelError, WeightsError, did_you_mean, shown
from sakuga.wan.weights import check_safetensors, file_sha256

PREFIXES = re.compile(r"^(?:base_model\.model\.|diffusion_model\.|transformer\.|model\.diffusion_model\.|pipe\.dit\.)+")
KOHYA_PREFIX = "lora_unet_"
KEY = re.compile(r"(?P<target>.+?)(?:\.module)?\.(?P<kind>lora_A|lora_B|lora_down|lora_up)(?:\.\w+)?\.weight")
ALPHA = re.compile(r"(?P<target>.+?)(?:\.module)?\.alpha")
KINDS = {"lora_A": "A", "lora_down": "A", "lora_B": "B", "lora_up": "B"}
OTHER_METHODS = re.compile(
    r"(?P<DoRA>magnitude|dora_scale)|(?P<LoKr>lokr_)|(?P<LoHa>hada_)|(?P<difference>\.diff(_b)?$)"
)
MAX_NAMED = 3
"""Tensors that an error names; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPair:
    """The change of one linear layer: scale * B @ A."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    """alpha / rank; 1 where the file has no alpha."""

    def delta(self, weight: float, device: torch.device) -> torch.Tensor:
        """Change of the layer's weight in fp32."""
        a, b = (tensor.to(device=device, dtype=torch.float32) for tensor in (self.a, self.b))
        return weight * (b @ (a * self.scale))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA file that fits a model, whole."""

    path: Path
    sha256: str
    pairs: Mapping[str, LoraPair]
    """By module name of the DiT."""

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({pair.a.shape[0] for pair in self.pairs.values()}))


def read_lora(path: Path, model: torch.nn.Module) -> Lora:
    """Read a LoRA for this DiT.

    Raises LoraError when a tensor has no place in the model, has no partner, has another shape or is not finite, when
    the file holds another method than LoRA, or when it is damaged.
    """
    try:
        check_safetensors(path)
    except OSError as error:
        raise LoraError(f"LoRA {path} cannot be read: {error.strerror}; check the path") from error
    except WeightsError as error:
        raise LoraError(error.message) from error
    tensors = load_file(path)
    shapes = {name: module.weight.shape for name, module in model.named_modules() if _is_linear(module)}
    found, alphas = _sorted_by_target(path, tensors, shapes)
    incomplete = [target for target, parts in found.items() if set(parts) != {"A", "B"}]
    incomplete += [target for target in alphas if target not in found]
    if incomplete or not found:
        names = _named(incomplete) if incomplete else "any LoRA tensor"
        raise LoraError(f"LoRA {path} lacks lora_A or lora_B of {names}; the file is not complete, export it again")
    pairs = {
        target: _checked_pair(path, target, parts, alphas.get(target), shapes[target])
        for target, parts in found.items()
    }
    return Lora(path=path, sha256=file_sha256(path), pairs=pairs)


def embedded_lora(name: str, card_name: str, lora_dir: Path | None, names: Sequence[str]) -> Path:
    """The file of a LoRA that comes with a card; ModelError with a guess for another name."""
    if lora_dir is None or name not in names:
        has = f"it has {', '.join(names)}" if names else "it has none of its own"
        raise ModelError(f"{card_name} has no LoRA {shown(name)}{did_you_mean(name, names)}; {has}, or give a path")
    return lora_dir / f"{name}.safetensors"


class LoraSwitch:
    """Fuses LoRAs into the experts of one loaded model and restores the base exactly.

    The base weights of touched layers are kept on the CPU from the first time on, so memory grows by the layers that
    LoRAs touch, and taking a LoRA out is a copy, not a subtraction that would leave rounding behind.
    """

    def __init__(self, experts: Sequence[torch.nn.Module]) -> None:
        self._experts = tuple(experts)
        self._known: dict[str, Lora] = {}
        self._base: dict[tuple[int, str], torch.Tensor] = {}
        self._fused: tuple[tuple[str, float], ...] = ()

    def register(self, path: Path) -> None:
        """Read a LoRA, once for the same content; LoraError when it does not fit."""
        lora = read_lora(path, self._experts[0])
        self._known.setdefault(lora.sha256, lora)

    def fuse(self, wanted: Sequence[tuple[str, float]]) -> None:
        """Make the weights base + the wanted (sha256, weight), in this order; nothing when they already are.

        Raises LoraError for a LoRA that was not registered.
        """
        if tuple(wanted) == self._fused:
            return
        for sha256, _ in wanted:
            if sha256 not in self._known:
                raise LoraError(f"LoRA {sha256[:12]} of the recipe is not among the files given; give the right file")
        loras = [(self._known[sha256], weight) for sha256, weight in wanted]
        targets = {target for lora, _ in loras for target in lora.pairs}
        with torch.no_grad():
            for index, expert in enumerate(self._experts):
                touched = {name for known_index, name in self._base if known_index == index}
                for target in targets | touched:
                    self._rebuild(index, expert, target, loras)
        self._fused = tuple(wanted)

    def report(self, sha256: str) -> dict[str, object]:
        """For the receipt: which file, how many of its pairs found their layer (all, or it was refused), its ranks."""
        lora = self._known[sha256]
        return {
            "sha256": sha256,
            "file": lora.path.name,
            "expected": len(lora.pairs),
            "matched": len(lora.pairs),
            "ranks": list(lora.ranks),
            "experts": len(self._experts),
        }

    def _rebuild(self, index: int, expert: torch.nn.Module, target: str, loras: Sequence[tuple[Lora, float]]) -> None:
        weight = expert.get_submodule(target).weight
        assert isinstance(weight, torch.Tensor)
        base = self._base.setdefault((index, target), weight.detach().to("cpu", copy=True))
        deltas = [lora.pairs[target].delta(strength, weight.device) for lora, strength in loras if target in lora.pairs]
        if not deltas:
            weight.copy_(base)
            return
        total = base.to(device=weight.device, dtype=torch.float32)
        for delta in deltas:
            total = total + delta
        weight.copy_(total)


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def _sorted_by_target(
    path: Path, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, float]]:
    """A and B by target module, and alphas; LoraError for a tensor that fits nowhere."""
    by_kohya = {name.replace(".", "_"): name for name in shapes}
    found: dict[str, dict[str, torch.Tensor]] = {}
    alphas: dict[str, float] = {}
    lost = []
    for key, tensor in tensors.items():
        if other := OTHER_METHODS.search(key):
            raise LoraError(f"LoRA {path} is a {other.lastgroup} (tensor {key}), not a LoRA; export it as one")
        match = KEY.fullmatch(key) or ALPHA.fullmatch(key)
        target = _module_name(match["target"], by_kohya) if match else ""
        if match is None or target not in shapes:
            lost.append(key)
        elif "kind" in match.groupdict():
            found.setdefault(target, {})[KINDS[match["kind"]]] = tensor
        else:
            alphas[target] = float(tensor)
    if lost:
        raise LoraError(
            f"LoRA {path} does not fit this model: {len(tensors) - len(lost)} of {len(tensors)} tensors have a place, "
            f"none for {_named(lost)}; it was made for another model or in an unknown format"
        )
    return found, alphas


def _module_name(written: str, by_kohya: Mapping[str, str]) -> str:
    if written.startswith(KOHYA_PREFIX):
        return by_kohya.get(written.removeprefix(KOHYA_PREFIX), written)
    return PREFIXES.sub("", written)


def _checked_pair(
    path: Path, target: str, parts: Mapping[str, torch.Tensor], alpha: float | None, shape: torch.Size
) -> LoraPair:
    a, b = parts["A"], parts["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != tuple(shape):
        raise LoraError(
            f"LoRA {path} has A {tuple(a.shape)} and B {tuple(b.shape)} for {target}, whose weight is {tuple(shape)}; "
            "it was made for a model of another size"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise LoraError(
            f"LoRA {path} has NaN or infinite values in {target}; its training diverged, use an earlier one"
        )
    return LoraPair(a=a, b=b, scale=1.0 if alpha is None else alpha / a.shape[0])


def _named(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
