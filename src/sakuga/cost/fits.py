"""Whether a render fits a device's memory, and the nearest plan with which it does.

Asked before anything is loaded or computed: a render that cannot end is refused in a sentence that says what would
work.     Run: pytest tests/unit/test_cost_fits.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sakuga.cost.devices import RESERVED_SHARE, usable_bytes
from sakuga.cost.footprint import QUANTIZED, Execution, Planned, model_parts, stages
from sakuga.cost.work import num_evaluations
from sakuga.errors import MemoryLimitError
from sakuga.parallel.plan import legal_plans
from sakuga.recipe import RenderRecipe, Tiling
from sakuga.wan.memory import MemoryPlan

if TYPE_CHECKING:
    from sakuga.wan.cards import ModelCard

GB = 10**9
MAX_SUGGESTED_RANKS = 8
"""Of one machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A way in which a render fits."""

    recipe: RenderRecipe
    execution: Planned
    precision: str
    peak_bytes: int
    change: str
    """What differs from what was asked, in words; empty where nothing does."""


def check_fits(
    recipe: RenderRecipe,
    card: ModelCard,
    execution: Execution,
    memory_bytes: int,
    device_name: str,
    *,
    precision: str | None = None,
) -> None:
    """Raises MemoryLimitError, with the nearest plan that fits, before anything is computed for what will not."""
    precision = precision or recipe.precision
    fullest = max(stages(recipe, card, execution, precision), key=lambda stage: stage.total_bytes)
    if fullest.total_bytes <= usable_bytes(memory_bytes):
        return
    advice = advise(recipe, card, execution, memory_bytes, precision=precision)
    raise MemoryLimitError(
        f"{recipe.width}x{recipe.height} and {recipe.num_frames} frames of {card.name} in {precision} need "
        f"{gigabytes(fullest.total_bytes)} to {fullest.stage}; {device_name} has {gigabytes(memory_bytes)}, of which "
        f"a render gets {1 - RESERVED_SHARE:.0%}; {advice}"
    )


def advise(
    recipe: RenderRecipe, card: ModelCard, execution: Execution, memory_bytes: int, *, precision: str | None = None
) -> str:
    """What to do about a render that does not fit, in words."""
    precision = precision or recipe.precision
    near = nearest_fit(recipe, card, execution, memory_bytes, precision=precision)
    if near is None:
        tightest = stages(recipe, card, replace(Planned.of(execution), memory=MemoryPlan(kind="disk")), precision)
        weight_bytes = max(stage.weight_bytes for stage in tightest)
        if weight_bytes > usable_bytes(memory_bytes):
            return f"no plan fits: {gigabytes(weight_bytes)} of weights are needed at once; take a smaller model"
        return "no plan fits; take a smaller size, fewer frames or a smaller model"
    smaller = _quantized(recipe, card, Planned.of(execution), precision)
    streams = near.execution.memory.kind in ("layers", "disk")
    if streams and smaller is not None and smaller.peak_bytes <= usable_bytes(memory_bytes):
        return f"it fits with {near.change}, or with {smaller.change}"
    return f"it fits with {near.change}"


def nearest_fit(
    recipe: RenderRecipe,
    card: ModelCard,
    execution: Execution,
    memory_bytes: int,
    *,
    precision: str | None = None,
) -> Fit | None:
    """The first way that fits: as asked, with tiles, with weights off the device, on more ranks; None if none does."""
    precision = precision or recipe.precision
    room = usable_bytes(memory_bytes)
    options = _options(recipe, card, Planned.of(execution), precision, room)
    return next((option for option in options if option.peak_bytes <= room), None)


def gigabytes(num_bytes: float) -> str:
    """As data sheets count; small models in MB.

    >>> gigabytes(57_000_000_000), gigabytes(87_000_000)
    ('57.0 GB', '87 MB')
    """
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB else f"{num_bytes / 10**6:.0f} MB"


def _options(recipe: RenderRecipe, card: ModelCard, execution: Planned, precision: str, room: int) -> Iterator[Fit]:
    """Nearest first: what costs no time before what does. None of them changes the picture but where tiles meet."""
    tiled = recipe if recipe.tiling is not None else replace(recipe, tiling=Tiling())
    yield _fit(recipe, card, execution, precision, "")
    yield _fit(tiled, card, execution, precision, "tiling")
    for memory in _less_memory(card, execution.memory, precision, recipe, execution, room):
        planned = replace(execution, memory=memory)
        words = f"memory {spelled(memory)}"
        yield _fit(recipe, card, planned, precision, words)
        yield _fit(tiled, card, planned, precision, f"{words} and tiling")
    guided = num_evaluations(recipe, card)[1] > 0
    disk = MemoryPlan(kind="disk")
    num_ranks = 2 * execution.parallel.sequence_degree
    while num_ranks <= MAX_SUGGESTED_RANKS:
        plans = legal_plans(num_ranks, num_heads=card.dit.num_heads, guided=guided)
        # Of the two branches each rank has one anyway: only shares of the tokens make it smaller.
        split = next(plan for plan in plans if plan.cfg == 1)
        planned = replace(execution, parallel=split, memory=disk)
        yield _fit(tiled, card, planned, precision, f"{split} ({num_ranks} ranks), memory disk and tiling")
        num_ranks *= 2


def _quantized(recipe: RenderRecipe, card: ModelCard, execution: Planned, precision: str) -> Fit | None:
    """8-bit weights of the DiT, one part at a time: another picture, but no weights on their way in every step."""
    if precision in QUANTIZED:
        return None
    planned = replace(execution, memory=MemoryPlan(kind="components"))
    tiled = recipe if recipe.tiling is not None else replace(recipe, tiling=Tiling())
    return _fit(tiled, card, planned, "int8", "precision int8, memory components and tiling")


def _less_memory(
    card: ModelCard,
    asked: MemoryPlan,
    precision: str,
    recipe: RenderRecipe,
    execution: Planned,
    room: int,
) -> Iterator[MemoryPlan]:
    """Plans that hold fewer weights than the one asked for, the fullest first."""
    if asked.kind == "resident":
        yield MemoryPlan(kind="components")
    if asked.kind in ("resident", "components", "layers"):
        budget = _largest_budget(card, precision, recipe, execution, room)
        if budget > 0 and (asked.budget_bytes is None or budget < asked.budget_bytes):
            yield MemoryPlan(kind="layers", budget_bytes=budget)
    if asked.kind != "disk":
        yield MemoryPlan(kind="disk")


def spelled(memory: MemoryPlan) -> str:
    """As a user would type it, rounded down."""
    if memory.budget_bytes is None:
        return memory.kind
    gigabytes_down = memory.budget_bytes // (GB // 10) / 10
    return f"{memory.kind}:{gigabytes_down:.1f}GB" if gigabytes_down >= 1 else str(memory)


def _largest_budget(card: ModelCard, precision: str, recipe: RenderRecipe, execution: Planned, room: int) -> int:
    """Bytes of blocks that fit beside the rest of the denoise stage, in whole blocks."""
    none = replace(execution, memory=MemoryPlan(kind="layers", budget_bytes=0))
    free = room - stages(recipe, card, none, precision)[1].total_bytes
    block_bytes = model_parts(card, precision)[0].block_bytes
    return max(0, free // block_bytes) * block_bytes


def _fit(recipe: RenderRecipe, card: ModelCard, execution: Planned, precision: str, change: str) -> Fit:
    peak_bytes = max(stage.total_bytes for stage in stages(recipe, card, execution, precision))
    return Fit(recipe=recipe, execution=execution, precision=precision, peak_bytes=peak_bytes, change=change)
