"""LoRAs on a loaded model: fused by weight, taken out again to the same bits, swapped between two requests.

`wan/lora_file.py` reads the files.     Run: pytest tests/unit/test_lora.py
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from sakuga.errors import LoraError, ModelError, did_you_mean, shown
from sakuga.recipe import EXPERTS, LoraRef
from sakuga.wan.lora_file import Lora, read_lora


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
        self._fused: tuple[LoraRef, ...] = ()

    def register(self, path: Path) -> None:
        """Read a LoRA, once for the same content; LoraError when it does not fit."""
        lora = read_lora(path, self._experts[0])
        self._known.setdefault(lora.sha256, lora)

    def fuse(self, wanted: Sequence[LoraRef]) -> None:
        """Make the weights base + the wanted, in this order; nothing when they already are.

        Raises LoraError for a LoRA that was not registered.
        """
        if tuple(wanted) == self._fused:
            return
        for ref in wanted:
            if ref.sha256 not in self._known:
                raise LoraError(
                    f"LoRA {ref.sha256[:12]} of the recipe is not among the files given; give the right file"
                )
        with torch.no_grad():
            for index, (name, expert) in enumerate(zip(EXPERTS, self._experts, strict=False)):
                loras = [(self._known[ref.sha256], ref.weight) for ref in wanted if ref.expert in (None, name)]
                targets = {target for lora, _ in loras for target in lora.changes}
                touched = {name for known_index, name in self._base if known_index == index}
                for target in targets | touched:
                    self._rebuild(index, expert, target, loras)
        self._fused = tuple(wanted)

    def report(self, ref: LoraRef) -> dict[str, object]:
        """For the receipt: which file, how many parameters it changes (all found, or it was refused), its ranks."""
        lora = self._known[ref.sha256]
        return {
            "sha256": ref.sha256,
            "file": lora.path.name,
            "expected": len(lora.changes),
            "matched": len(lora.changes),
            "ranks": list(lora.ranks),
            "experts": len(self._experts) if ref.expert is None else 1,
        }

    def _rebuild(self, index: int, expert: torch.nn.Module, target: str, loras: Sequence[tuple[Lora, float]]) -> None:
        parameter = expert.get_parameter(target)
        base = self._base.setdefault((index, target), parameter.detach().to("cpu", copy=True))
        changes = [(lora.changes[target], strength) for lora, strength in loras if target in lora.changes]
        if not changes:
            parameter.copy_(base)
            return
        start = base.to(device=parameter.device, dtype=torch.float32)
        total = start
        for change, strength in changes:
            total = total + strength * change.of(start)
        parameter.copy_(total)
