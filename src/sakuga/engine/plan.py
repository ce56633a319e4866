"""How a render is carried out: what a recipe leaves open because it changes no pixel beyond rounding.

Run: pytest tests/unit/test_memory.py
"""

from dataclasses import dataclass, field

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
