"""How a render is carried out: what a recipe leaves open because it changes no pixel beyond rounding.

Run: pytest tests/unit/test_memory.py
"""

import shutil
from dataclasses import dataclass, field

import torch

from sakuga.errors import PlanError
from sakuga.parallel import ParallelPlan
from sakuga.wan.memory import MemoryPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    """Ranks, memory, compilation, and how LoRAs are applied."""

    parallel: ParallelPlan = field(default_factory=ParallelPlan)
    memory: MemoryPlan = field(default_factory=MemoryPlan)
    compile: bool = False
    """Each block of the DiT through `torch.compile`."""
    hot_loras: bool = False
    """LoRAs beside the weights instead of fused into them: slower steps, swapped in no time."""
    allow_unverified: bool = False
    """Start combinations too that `verified.json` does not have."""

    def __str__(self) -> str:
        """Short, for receipts and notes.

        >>> str(ExecutionPlan(compile=True))
        'cfg 1 x ulysses 1 x ring 1, memory resident, compiled'
        """
        extras = ", compiled" * self.compile + ", hot LoRAs" * self.hot_loras
        return f"{self.parallel}, memory {self.memory}{extras}"

    def check(self, device: torch.device) -> None:
        """Raises PlanError for what does not go together or cannot be done on this machine."""
        if not self.compile:
            return
        if self.memory.kind in ("layers", "disk"):
            raise PlanError(
                f"compile needs weights that stay where they are, and {self.memory} moves them; leave it out"
            )
        if device.type == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
            raise PlanError("compile needs a C++ compiler on a CPU; install g++ or leave compile out")
