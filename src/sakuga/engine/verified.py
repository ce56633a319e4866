"""Which accelerations were seen to give the render of one process, and which were not.

Accelerations break in pairs. `tests/matrix.py` renders rows that cover every pair of features, holds each to the
plain render on one process and writes the pairs into `verified.json`. A render whose every pair is there may start;
another one only when told to, and its receipt says so.

The attention kernels are no part of it: each is held to fp32 on the machine itself (`wan/attention_choice.py`).
Run: pytest tests/unit/test_verified.py
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.task import task_of
from sakuga.errors import UnverifiedError
from sakuga.parallel import ParallelPlan
from sakuga.recipe import RenderRecipe
from sakuga.wan.cards import ModelCard

TABLE = Path(__file__).with_name("verified.json")
SAME_CODE_ON_ONE_GPU = {
    "plan": ("single",),
    "precision": ("fp32", "bf16", "fp16"),
    "memory": ("resident", "components", "disk"),
    "compile": ("no",),
}
"""What one process with a GPU does as it does without one; ranks, streams and generated kernels are other code there.

Axes that are not named here are carried over whole."""
MAX_NAMED = 3

Features = Mapping[str, str]
"""Value by axis."""


def features(recipe: RenderRecipe, card: ModelCard, execution: ExecutionPlan) -> Features:
    """What of the engine this render would use."""
    is_quantized = recipe.precision not in ("fp32", "bf16", "fp16")
    applied = "hot" if execution.hot_loras or is_quantized else "fused"
    return {
        "family": family_of(recipe, card),
        "plan": plan_name(execution.parallel),
        "cache": "none" if recipe.step_cache is None else recipe.step_cache.kind,
        "loras": applied if recipe.loras else "none",
        "precision": recipe.precision,
        "tiling": "no" if recipe.tiling is None else "yes",
        "memory": execution.memory.kind,
        "compile": "yes" if execution.compile else "no",
    }


def family_of(recipe: RenderRecipe, card: ModelCard) -> str:
    """The task and what the model has for it: "i2v+clip", "t2v+two-experts".

    Cards of one family differ in sizes only.
    """
    task = task_of(recipe, card)
    parts = [task]
    if card.needs_clip:
        parts.append("clip")
    if task in ("t2v", "v2v") and card.in_dim == 36:
        parts.append("grey")  # image channels without an image
    if card.z_dim == 48:
        parts.append("ti2v")
    if recipe.motion_bucket_id is not None:
        parts.append("speed")
    if card.two_experts:
        parts.append("two-experts")
    return "+".join(parts)


def plan_name(plan: ParallelPlan) -> str:
    """The axes that a plan splits. Degrees are not told apart: the exchange is held to 2 and 4 in tests/dist.

    >>> plan_name(ParallelPlan()), plan_name(ParallelPlan(cfg=2, ulysses=4))
    ('single', 'cfg+ulysses')
    """
    return "+".join(axis for axis in ("cfg", "ulysses", "ring") if getattr(plan, axis) > 1) or "single"


def pairs_of(found: Features) -> set[str]:
    """All pairs of features, as the table has them.

    >>> sorted(pairs_of({"plan": "ring", "cache": "none", "tiling": "no"}))
    ['cache=none plan=ring', 'cache=none tiling=no', 'plan=ring tiling=no']
    """
    return {" ".join(pair) for pair in combinations(_values(found), 2)}


def _values(found: Features) -> list[str]:
    return sorted(f"{axis}={value}" for axis, value in found.items())


def unverified_pairs(found: Features, device_type: str) -> list[str]:
    """Pairs that the table does not have for this kind of device."""
    table = _table()
    known = set(table.get(device_type, ()))
    if device_type == "cuda":
        known |= {pair for pair in table["cpu"] if all(_is_same_on_a_gpu(feature) for feature in pair.split())}
    return sorted(pairs_of(found) - known)


def check_verified(found: Features, device_type: str, *, allow: bool) -> tuple[str, ...]:
    """Notes for the receipt. Raises UnverifiedError for a combination outside the table, unless `allow`."""
    missing = unverified_pairs(found, device_type)
    if not missing:
        return ()
    alone = [
        value for value in _values(found) if all(pair in missing for pair in pairs_of(found) if value in pair.split())
    ]
    rest = [pair.replace(" ", " with ") for pair in missing if not any(value in pair.split() for value in alone)]
    named = "; ".join([*alone, *rest][:MAX_NAMED])
    if allow:
        return (f"not verified on {device_type}: {named}",)
    raise UnverifiedError(
        f"{named} was never held to the plain render on {device_type}; leave it out, or say --unverified and look at "
        "the result"
    )


def _is_same_on_a_gpu(feature: str) -> bool:
    axis, _, value = feature.partition("=")
    return axis not in SAME_CODE_ON_ONE_GPU or value in SAME_CODE_ON_ONE_GPU[axis]


@lru_cache(maxsize=1)
def _table() -> dict[str, list[str]]:
    return json.loads(TABLE.read_text())["pairs"]
