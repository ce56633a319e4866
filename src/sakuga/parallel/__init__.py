"""One render on several ranks: plans, meshes of process groups, tokens and attention split over ranks. No Ray."""

from sakuga.parallel.mesh import Mesh
from sakuga.parallel.plan import ParallelPlan, legal_plans
from sakuga.parallel.sequence import SequenceAttention, SequenceShard

__all__ = ["Mesh", "ParallelPlan", "SequenceAttention", "SequenceShard", "legal_plans"]
