"""One render on several ranks: plans, meshes of process groups, tokens and attention split over ranks. No Ray.

Plans are plain values; what needs torch is imported when it is asked for, so that a scheduler can reckon with plans.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sakuga.parallel.plan import ParallelPlan, legal_plans

if TYPE_CHECKING:
    from sakuga.parallel.mesh import Mesh
    from sakuga.parallel.sequence import SequenceAttention, SequenceShard
    from sakuga.parallel.vae import SharedVae

__all__ = ["Mesh", "ParallelPlan", "SequenceAttention", "SequenceShard", "SharedVae", "legal_plans"]

_WITH_TORCH = {"Mesh": "mesh", "SequenceAttention": "sequence", "SequenceShard": "sequence", "SharedVae": "vae"}


def __getattr__(name: str) -> object:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
