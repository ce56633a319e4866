"""Whether a training trial fits, before it is begun: predicted bytes against those of its executor.

One that does not is refused, or made smaller where the sweep allows it: first fewer samples at a time, which changes
nothing of what is learned, then activations that are made again.

Run: pytest tests/unit/test_tuning_admission.py
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sakuga.cost.devices import RESERVED_SHARE, usable_bytes
from sakuga.cost.fits import gigabytes
from sakuga.cost.training import TrainPlan, advise_training, train_bytes
from sakuga.errors import MemoryLimitError
from sakuga.training.config import TrainConfig

if TYPE_CHECKING:
    from sakuga.wan.cards import ModelCard


def admit(plan: TrainPlan, card: ModelCard, memory_bytes: int, *, resizes: bool) -> tuple[TrainPlan, str | None]:
    """The plan, or a smaller one and what was changed. Raises MemoryLimitError for one that will not fit."""
    needed, tried = train_bytes(plan, card).peak, plan
    while train_bytes(tried, card).peak > usable_bytes(memory_bytes):
        smaller = _smaller(tried) if resizes else None
        if smaller is None:
            raise MemoryLimitError(
                f"a step of {plan.micro_batch} x {plan.width}x{plan.height} and {plan.num_frames} frames of "
                f"{card.name} is predicted to need {gigabytes(needed)}; the executor has {gigabytes(memory_bytes)}, of "
                f"which a trial gets {1 - RESERVED_SHARE:.0%}; {advise_training(plan, card, memory_bytes)}"
            )
        tried = smaller
    if tried is plan:
        return plan, None
    changes = [f"micro-batches of {tried.micro_batch} for {plan.micro_batch}"] * (tried.micro_batch < plan.micro_batch)
    changes += ["activations made again"] * (tried.settings.checkpointing != plan.settings.checkpointing)
    return tried, f"resized to fit {gigabytes(memory_bytes)} ({gigabytes(needed)} predicted): {', '.join(changes)}"


def _smaller(plan: TrainPlan) -> TrainPlan | None:
    if plan.micro_batch > 1:
        return dataclasses.replace(plan, micro_batch=plan.micro_batch // 2, accumulates=True)
    settings = plan.settings
    assert isinstance(settings, TrainConfig)
    if settings.checkpointing == "none":
        return dataclasses.replace(plan, settings=dataclasses.replace(settings, checkpointing="recompute"))
    return None
