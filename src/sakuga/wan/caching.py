"""Step caches: rules by which a denoise step reuses what earlier steps computed instead of running the DiT's blocks.

Neighbouring steps ask the model nearly the same question. A rule is a pure decision (run the blocks, or not) and a way
to answer without them. What it remembers belongs to one CFG branch of one render and travels with the render's state,
so that two renders never mix and a resumed one goes on to the same bits.

| kind | decides by | answers with |
|---|---|---|
| teacache | change of the time modulation, through a fitted polynomial | last residual of all blocks |
| forecast | its own last error, grown with the distance | velocity on the line through the last two |

TeaCache remembers hidden states (774 MB a branch at 14B and 720p), the forecast two velocities (19 MB each).

A cache must beat the plain render with as many steps as its blocks buy. EasyCache and a first-block residual were
built, measured on Wan-mini and left out again, as they did not (docs/LOG.md). forecast does, by 9.6 dB at 2.65 times
fewer blocks (benchmarks/results/engine.json); TeaCache is level with fewer steps there and stays as what is published
and tuned for the large cards.

Sources: TeaCache (Liu et al. 2024, arXiv 2411.19108); forecasting (TaylorSeer, Liu et al. 2025, arXiv 2503.06923; its
step control is that of an adaptive multistep solver).     Run: pytest tests/unit/test_caching.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from sakuga.errors import RecipeError, did_you_mean, shown
from sakuga.recipe import StepCache
from sakuga.wan.cards import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchCache:
    """What a rule remembers of one CFG branch; empty at the start and after a refresh."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


EMPTY = BranchCache()
PER_TOKEN = ("residual",)
"""Tensors of a memory that are hidden states (B, S, D); the others have the shape of latents or of a modulation."""


class Evaluation(Protocol):
    """One step of one branch: the DiT's parts, each run when it is asked for and once at most."""

    index: int
    """Of the step, from 0."""
    num_steps: int
    sigma: float
    latents_BCTHW: torch.Tensor

    def modulation(self) -> torch.Tensor:
        """Of the time embedding, the same for all tokens."""
        ...

    def embedded(self) -> torch.Tensor:
        """Hidden states before the first block."""
        ...

    def after_all_blocks(self) -> torch.Tensor: ...

    def head(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """Velocity of hidden states."""
        ...

    def mean_abs(self, x: torch.Tensor) -> float:
        """Mean absolute value over all tokens, those of other ranks too."""
        ...


Rule = Callable[[Evaluation, BranchCache], tuple[torch.Tensor, BranchCache]]
"""The velocity of a step and what to remember for the next one."""


def make_rule(cache: StepCache, card: ModelCard) -> Rule:
    """The rule of a recipe. Raises RecipeError for an unknown kind or a card without coefficients."""
    if cache.kind == "teacache":
        rule = teacache(cache.threshold_rel_l1, _coefficients(card))
    elif cache.kind == "forecast":
        rule = forecast(cache.threshold_rel_l1)
    else:
        hint = did_you_mean(cache.kind, KINDS) or f"; choose one of {', '.join(KINDS)}"
        raise RecipeError(f"step_cache.kind {shown(cache.kind)} is unknown{hint}")
    every = cache.refresh_every

    def refreshed(evaluation: Evaluation, remembered: BranchCache) -> tuple[torch.Tensor, BranchCache]:
        return rule(evaluation, EMPTY if every and evaluation.index % every == 0 else remembered)

    return refreshed


def _coefficients(card: ModelCard) -> tuple[float, ...]:
    coefficients = card.teacache_coefficients()
    if coefficients is None:
        raise RecipeError(f"{card.name} has no TeaCache coefficients; take forecast, which needs none")
    return coefficients


def full_velocity(evaluation: Evaluation) -> torch.Tensor:
    """The step without any cache."""
    return evaluation.head(evaluation.after_all_blocks())


def _is_edge(evaluation: Evaluation) -> bool:
    """The first steps lay the picture out and the last one finishes it: they are always computed."""
    return evaluation.index == 0 or evaluation.index == evaluation.num_steps - 1


def teacache(threshold: float, coefficients: tuple[float, ...]) -> Rule:
    """TeaCache as DiffSynth has it, the decision as well as the residual."""

    def rule(e: Evaluation, cache: BranchCache) -> tuple[torch.Tensor, BranchCache]:
        modulation = e.modulation()
        change = 0.0
        if not _is_edge(e) and "residual" in cache.tensors:
            step_change = relative_change(e, modulation, cache.tensors["modulation"])
            change = cache.numbers["change"] + polynomial(coefficients, step_change)
            if change < threshold:
                residual = cache.tensors["residual"]
                kept = {"modulation": modulation, "residual": residual}
                velocity = e.head(e.embedded() + residual)
                return velocity, BranchCache(tensors=kept, numbers={"change": change})
        hidden = e.after_all_blocks()
        kept = {"modulation": modulation, "residual": hidden - e.embedded()}
        return e.head(hidden), BranchCache(tensors=kept, numbers={"change": 0.0})

    return rule


def observer(tell: Callable[[float, float], None]) -> Rule:
    """Every step is computed, and `tell` gets what TeaCache's polynomial shall map to what.

    That is the relative change of the modulation since the last step, as `teacache` sees it, and that of the residual
    of all blocks. Steps that TeaCache always computes say nothing.
    """

    def rule(e: Evaluation, cache: BranchCache) -> tuple[torch.Tensor, BranchCache]:
        hidden = e.after_all_blocks()
        kept = {"modulation": e.modulation(), "residual": hidden - e.embedded()}
        if not _is_edge(e) and cache.tensors:
            changes = {name: relative_change(e, x, cache.tensors[name]) for name, x in kept.items()}
            tell(changes["modulation"], changes["residual"])
        return e.head(hidden), BranchCache(tensors=kept)

    return rule


def forecast(threshold: float) -> Rule:
    """The velocity on the line through the last two that were computed; its error is measured at each computed step.

    A line's error grows with the distances to both of its points. Each computed step tells what the line would have
    missed by, which gives the constant of that growth; a step is skipped while the growth stays below the threshold.
    """

    def rule(e: Evaluation, cache: BranchCache) -> tuple[torch.Tensor, BranchCache]:
        known, numbers = cache.tensors, cache.numbers
        line, spread = None, 0.0
        if "before" in known:
            last, before = numbers["sigma"], numbers["sigma_before"]
            share = (e.sigma - last) / (last - before)
            line = known["velocity"] + share * (known["velocity"] - known["before"])
            spread = abs((e.sigma - last) * (e.sigma - before))
            if not _is_edge(e) and "growth" in numbers and numbers["growth"] * spread < threshold:
                return line, cache
        velocity = full_velocity(e).float()
        tensors, told = {"velocity": velocity}, {"sigma": e.sigma}
        if "velocity" in known:
            tensors["before"], told["sigma_before"] = known["velocity"], numbers["sigma"]
        if line is not None:
            told["growth"] = e.mean_abs(velocity - line) / e.mean_abs(velocity) / spread
        return velocity, BranchCache(tensors=tensors, numbers=told)

    return rule


def relative_change(e: Evaluation, x: torch.Tensor, before: torch.Tensor) -> float:
    return e.mean_abs(x - before) / e.mean_abs(before)


def polynomial(coefficients: tuple[float, ...], x: float) -> float:
    """Highest power first, as numpy's `poly1d`."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


KINDS = ("teacache", "forecast")
