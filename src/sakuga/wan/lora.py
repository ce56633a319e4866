"""LoRAs on a loaded model: fused into the weights and taken out again to the same bits, or beside them.

*Fused* costs nothing in a step, and a swap rewrites the weights concerned. *Hot* leaves the weights alone and adds the
LoRA's product in every step: a swap costs nothing, and weights that are quantized, to which nothing can be added, take
LoRAs too. Both are the same sum up to rounding.

`wan/lora_file.py` reads the files.     Run: pytest tests/unit/test_lora.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch.nn import functional

from sakuga.errors import LoraError, ModelError, did_you_mean, shown
from sakuga.recipe import EXPERTS, LoraRef
from sakuga.wan.lora_file import Change, Lora, LowRank, read_lora
from sakuga.wan.precision import is_quantized


def embedded_lora(name: str, card_name: str, lora_dir: Path | None, names: Sequence[str]) -> Path:
    """The file of a LoRA that comes with a card; ModelError with a guess for another name."""
    if lora_dir is None or name not in names:
        has = f"it has {', '.join(names)}" if names else "it has none of its own"
        raise ModelError(f"{card_name} has no LoRA {shown(name)}{did_you_mean(name, names)}; {has}, or give a path")
    return lora_dir / f"{name}.safetensors"


class BaseWeights(Protocol):
    """Where the weights without any LoRA are to be had."""

    def of(self, expert: int, name: str) -> torch.Tensor:
        """On the CPU, in the numbers that the model computes in."""
        ...


class _Named(Protocol):
    def __getitem__(self, name: str) -> torch.Tensor: ...


class KeptBase:
    """A copy of each weight that a LoRA touches, from the first time on: for models that have no files."""

    def __init__(self, experts: Sequence[torch.nn.Module]) -> None:
        self._experts = tuple(experts)
        self._kept: dict[tuple[int, str], torch.Tensor] = {}

    def of(self, expert: int, name: str) -> torch.Tensor:
        if (expert, name) not in self._kept:
            parameter = self._experts[expert].get_parameter(name)
            self._kept[expert, name] = parameter.detach().to("cpu", copy=True)
        return self._kept[expert, name]


class FileBase:
    """Read from the memory-mapped files of each expert, so that nothing is held twice."""

    def __init__(self, files: Sequence[Sequence[Path]], dtype: torch.dtype) -> None:
        self._files, self._dtype = files, dtype
        self._open: dict[int, _Named] = {}

    def of(self, expert: int, name: str) -> torch.Tensor:
        from diffsynth.configs import MODEL_CONFIGS
        from diffsynth.core.loader import hash_model_file
        from diffsynth.core.vram.disk_map import DiskMap
        from diffsynth.models.model_loader import ModelPool

        if expert not in self._open:
            paths = [str(path) for path in self._files[expert]]
            model_hash = hash_model_file(paths)
            config = next(entry for entry in MODEL_CONFIGS if entry["model_hash"] == model_hash)
            converter = config.get("state_dict_converter")
            converter = None if converter is None else ModelPool().import_model_class(converter)
            # Renames as the loader does.
            self._open[expert] = DiskMap(paths, "cpu", torch_dtype=self._dtype, state_dict_converter=converter)
        return self._open[expert][name]


class LoraSwitch:
    """Makes the experts of one loaded model their base plus the LoRAs that a render wants, and takes them out again.

    To take a fused LoRA out is to read the base again, not a subtraction that would leave rounding behind.
    """

    def __init__(
        self,
        experts: Sequence[torch.nn.Module],
        base: BaseWeights | None = None,
        *,
        hot: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`device` and `dtype` are those of the computation, where hot LoRAs are held; None: the weights' own."""
        self._experts = tuple(experts)
        self._base = base or KeptBase(experts)
        self._hot, self._device, self._dtype = hot, device, dtype
        self._known: dict[str, Lora] = {}
        self._fused_names: set[tuple[int, str]] = set()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._applied: tuple[LoraRef, ...] | None = ()

    def register(self, path: Path) -> None:
        """Read a LoRA, once for the same content; LoraError when it does not fit."""
        lora = read_lora(path, self._experts[0])
        self._known.setdefault(lora.sha256, lora)

    def is_applied(self, wanted: Sequence[LoraRef]) -> bool:
        """Whether `apply` would have nothing to do."""
        return tuple(wanted) == self._applied

    def apply(self, wanted: Sequence[LoraRef]) -> None:
        """Make the model base + the wanted, in this order; nothing when it already is.

        Raises LoraError for a LoRA that was not registered.
        """
        if self.is_applied(wanted):
            return
        for ref in wanted:
            if ref.sha256 not in self._known:
                raise LoraError(
                    f"LoRA {ref.sha256[:12]} of the recipe is not among the files given; give the right file"
                )
        self._applied = None  # neither the old nor the new ones, should this end halfway
        while self._hooks:
            self._hooks.pop().remove()
        with torch.no_grad():
            for index, (name, expert) in enumerate(zip(EXPERTS, self._experts, strict=False)):
                loras = [(self._known[ref.sha256], ref.weight) for ref in wanted if ref.expert in (None, name)]
                targets = {target for lora, _ in loras for target in lora.changes}
                touched = {name for known_index, name in self._fused_names if known_index == index}
                for target in targets | touched:
                    changes = [(lora.changes[target], weight) for lora, weight in loras if target in lora.changes]
                    if self._goes_beside(expert, target):
                        self._add_beside(index, expert, target, changes)
                    else:
                        self._fuse(index, expert, target, changes)
        self._applied = tuple(wanted)

    def report(self, ref: LoraRef) -> dict[str, object]:
        """For the receipt: which file, how many parameters it changes (all found, or it was refused), its ranks."""
        lora = self._known[ref.sha256]
        beside = [target for target in lora.changes if self._goes_beside(self._experts[0], target)]
        return {
            "sha256": ref.sha256,
            "file": lora.path.name,
            "expected": len(lora.changes),
            "matched": len(lora.changes),
            "hot": len(beside),
            "ranks": list(lora.ranks),
            "experts": len(self._experts) if ref.expert is None else 1,
        }

    def _goes_beside(self, expert: torch.nn.Module, target: str) -> bool:
        """Norms and biases, a few numbers each, are always fused."""
        module_name, _, kind = target.rpartition(".")
        is_matrix = kind == "weight" and isinstance(expert.get_submodule(module_name), torch.nn.Linear)
        return is_matrix and (self._hot or is_quantized(expert.get_parameter(target)))

    def _fuse(self, index: int, expert: torch.nn.Module, target: str, changes: Sequence[tuple[Change, float]]) -> None:
        parameter = expert.get_parameter(target)
        base = self._base.of(index, target)
        self._fused_names.add((index, target))
        if not changes:
            parameter.copy_(base)
            return
        total = start = base.to(device=parameter.device, dtype=torch.float32)
        for change, strength in changes:
            total = total + strength * change.of(start)
        parameter.copy_(total.to(base.dtype))

    def _add_beside(
        self, index: int, expert: torch.nn.Module, target: str, changes: Sequence[tuple[Change, float]]
    ) -> None:
        parameter = expert.get_parameter(target)
        device, dtype = self._device or parameter.device, self._dtype or parameter.dtype
        down, up, whole = [], [], None
        for change, strength in changes:
            if isinstance(change, LowRank):
                down.append(change.a.float())
                up.append(change.b.float() * (change.scale * strength))
            else:  # a product of matrices that is no low rank, or one that depends on the base
                delta = strength * change.of(self._base.of(index, target).float())
                whole = delta if whole is None else whole + delta
        beside = _Beside(
            down=torch.cat(down).to(device, dtype) if down else None,
            up=torch.cat(up, dim=1).to(device, dtype) if up else None,
            whole=None if whole is None else whole.to(device, dtype),
        )
        module = expert.get_submodule(target.rpartition(".")[0])
        self._hooks.append(module.register_forward_hook(beside))


class _Beside:
    """Adds hot LoRAs to what a linear layer gives; those of one layer are one product."""

    def __init__(self, down: torch.Tensor | None, up: torch.Tensor | None, whole: torch.Tensor | None) -> None:
        self.down, self.up, self.whole = down, up, whole

    def __call__(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        if self.down is not None and self.up is not None:
            out = out + functional.linear(functional.linear(args[0], self.down), self.up)
        if self.whole is not None:
            out = out + functional.linear(args[0], self.whole)
        return out
