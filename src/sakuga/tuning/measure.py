"""Trials that only render: the evaluation cases with a point's fields, held to the reference and to the targets.

The engine stays loaded from trial to trial; a point of another precision loads it again, which is why grids change
their last parameter first. What a trial trained is judged by the same code, `LoraEvaluator`.

Run: pytest tests/unit/test_tuning_measure.py
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sakuga.cost import check_fits
from sakuga.engine.local import LocalEngine
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.resolve import resolve
from sakuga.engine.state import RenderInputs
from sakuga.errors import SweepError
from sakuga.media import read_video
from sakuga.quality.figures import measured, ratio
from sakuga.quality.frames import Frames
from sakuga.recipe import RecipeRequest, RenderRecipe
from sakuga.recipe.request import parse_request
from sakuga.tuning.cases import Case, CaseSpec, cases_of
from sakuga.tuning.points import render_fields
from sakuga.tuning.renders import RenderStore, StoredRender, machine_of
from sakuga.tuning.runner import TrialReport
from sakuga.tuning.space import Point
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.trials import DONE, CaseFigures, SweepFolder, TrialResult
from sakuga.wan.cards import ModelCard
from sakuga.wan.catalogue import card
from sakuga.wan.device import check_device, memory_bytes

TIMES = ("seconds", "denoise_s", "reference_seconds", "speedup")
SIZE_FIELDS = ("width", "height", "num_frames", "fps")


class CaseRenderer:
    """Renders cases of one model and measures them; keeps the engine."""

    def __init__(
        self,
        model: str,
        weights: str | None,
        store: RenderStore,
        *,
        device: str = "cpu",
        engine: LocalEngine | None = None,
    ) -> None:
        self.card: ModelCard = card(model)
        self._weights, self._store, self._device = weights, store, device
        self._engine = engine
        self._is_ours = engine is None

    def resolve(self, case: Case, fields: Mapping[str, object]) -> tuple[RenderRecipe, RenderInputs]:
        """Raises what a request of the farm would raise."""
        request: RecipeRequest = parse_request({"model": self.card.name, **case.fields, **fields})
        recipe, inputs, _ = resolve(request, self.card, Path(), self._weights)
        return recipe, inputs

    def render(self, case: Case, fields: Mapping[str, object]) -> StoredRender:
        """From the store, or now."""
        recipe, inputs = self.resolve(case, fields)
        return self._store.render(recipe, inputs, machine=self.machine, engine=lambda: self._engine_for(recipe, inputs))

    @property
    def machine(self) -> str:
        """Where its seconds are measured."""
        execution = ExecutionPlan() if self._engine is None else self._engine.execution
        return machine_of(check_device(self._device), execution)

    def measure(
        self, case: Case, fields: Mapping[str, object], reference: Mapping[str, object] | None = None
    ) -> CaseFigures:
        """Figures of one case; with `reference`, also against its render with those fields."""
        beside = None if reference is None else self.render(case, reference)
        made = self.render(case, fields)
        target_THWC = None if case.target is None else _cut(read_video(case.target), made.frames_THWC)
        prompt = str(case.fields["prompt"])
        figures = dict(
            measured(
                made.frames_THWC,
                reference_THWC=None if beside is None else beside.frames_THWC,
                target_THWC=target_THWC,
                prompt=prompt,
            ).figures
        )
        figures |= {"seconds": made.seconds, "denoise_s": made.denoise_s}
        if made.peak_bytes is not None:
            figures["peak_bytes"] = float(made.peak_bytes)
        if beside is not None:
            figures |= {"reference_seconds": beside.seconds, "speedup": beside.seconds / made.seconds}
        return CaseFigures(
            name=case.name, figures=figures, render_key=made.key, reference_key=None if beside is None else beside.key
        )

    def _engine_for(self, recipe: RenderRecipe, inputs: RenderInputs) -> LocalEngine:
        if self._engine is None or (self._is_ours and self._engine.model.precision != recipe.precision):
            self._engine = None  # first: two large models do not fit beside each other
            self._engine = LocalEngine.load(self.card, self._weights, device=self._device, precision=recipe.precision)
            self._warm_up(self._engine, recipe, inputs)
        return self._engine

    def _warm_up(self, engine: LocalEngine, recipe: RenderRecipe, inputs: RenderInputs) -> None:
        """One step of what comes next, so that the first case does not pay for what PyTorch does once."""
        engine.render(replace(recipe, num_inference_steps=1, step_cache=None), inputs)


class InferenceRunner:
    """A `TrialRunner` whose trials render; one piece of work is one case."""

    def __init__(self, sweep: Sweep, folder: SweepFolder, *, device: str | None = None) -> None:
        if sweep.evaluation is None:
            raise SweepError("an inference sweep needs an evaluation: what its trials render")
        if sweep.executors.threads is not None:
            torch.set_num_threads(sweep.executors.threads)
        self.sweep, self.folder = sweep, folder
        self._renderer = CaseRenderer(
            sweep.model, sweep.weights, RenderStore(folder.renders), device=device or sweep.executors.device
        )
        self._device = check_device(device or sweep.executors.device)
        self._cases = cases_of(sweep.evaluation, case_spec(sweep), folder.cases)
        self._rows: list[CaseFigures] = []
        self._began = self._started = time.monotonic()
        self._free_at: float | None = None

    def begin(self, trial_id: str, point: Point, seed: int = 0) -> None:
        """Raises MemoryLimitError for renders that are predicted not to fit, before anything is loaded for them."""
        self._id, self._point, self._seed = trial_id, dict(point), seed
        self._fields = render_fields(self.sweep.base, point)
        self._rows, self._began, self._started = [], time.monotonic(), 0.0
        executors = self.sweep.executors
        shared_by = 1 if self._device.type == "cuda" else executors.count
        room = executors.memory_bytes or memory_bytes(self._device) // shared_by
        for case in self._cases:
            for fields in (self._fields, reference_fields(self.sweep, self._fields)):
                recipe, _ = self._renderer.resolve(case, fields)
                check_fits(recipe, self._renderer.card, ExecutionPlan(), room, "the executor")

    def advance(self) -> TrialReport:
        self._started = self._started or time.monotonic()
        case = self._cases[len(self._rows)]
        self._rows.append(self._renderer.measure(case, self._fields, reference_fields(self.sweep, self._fields)))
        return TrialReport(figures=means(self._rows), share=len(self._rows) / len(self._cases))

    def save(self, folder: Path) -> None:
        """Nothing: what was rendered is in the store."""

    def restore(self, folder: Path) -> None:
        """Nothing: what was rendered is found in the store."""

    def end(self, state: str = DONE, reason: str | None = None) -> TrialResult:
        now = time.monotonic()
        overhead_s = None if self._free_at is None else (self._started or now) - self._free_at
        result = TrialResult(
            id=self._id, point=self._point, state=state, figures=means(self._rows), rows=tuple(self._rows),
            reason=reason, seed=self._seed, fields=self._fields, overhead_s=overhead_s, wall_s=now - self._began,
        )  # fmt: skip
        self.folder.write(result)
        self._free_at = time.monotonic()
        return result


class LoraEvaluator:
    """Judges what was trained: renders the evaluation cases with a LoRA file."""

    def __init__(self, sweep: Sweep, folder: SweepFolder, *, engine: LocalEngine | None = None) -> None:
        """`engine`, if given, must have the base weights alone in its experts, as a trainer leaves them."""
        if sweep.evaluation is None:
            raise SweepError("the sweep has no evaluation; add one, to judge what is trained")
        self._sweep = sweep
        self._cases = cases_of(sweep.evaluation, case_spec(sweep), folder.cases)
        self._renderer = CaseRenderer(
            sweep.model, sweep.weights, RenderStore(folder.renders), device=sweep.executors.device, engine=engine
        )

    def fields(self, lora: Path) -> dict[str, object]:
        """Of a request that renders with the file."""
        return {**self._sweep.render, "loras": [{"path": str(lora.resolve())}]}

    def rows(self, lora: Path) -> tuple[CaseFigures, ...]:
        """Raises what rendering raises."""
        return tuple(self._renderer.measure(case, self.fields(lora)) for case in self._cases)


def case_spec(sweep: Sweep) -> CaseSpec:
    """The size of a sweep's cases: that of its base, with the longest of the space."""
    found = card(sweep.model)
    base = sweep.base if sweep.kind == "inference" else sweep.render
    sizes = {name: base.get(name) or getattr(found, name) for name in SIZE_FIELDS}
    frames = sweep.parameters.get("num_frames") if sweep.kind == "inference" else None
    if frames is not None:
        sizes["num_frames"] = max(value for value in frames.ends() if isinstance(value, int))
    return CaseSpec(**sizes, takes_image=found.takes_first_frame)  # ty: ignore[invalid-argument-type]


def reference_fields(sweep: Sweep, fields: Mapping[str, object]) -> dict[str, object]:
    """The base with the reference's fields, at the size of the trial."""
    sizes = {name: fields[name] for name in SIZE_FIELDS if name in fields}
    return {**sweep.base, **sizes, **sweep.reference}


def means(rows: Sequence[CaseFigures]) -> dict[str, float]:
    """Of the figures that all rows have.

    Of `TIMES` the median, so that one disturbed render decides nothing. Ratios of flicker and motion are those of the
    means: a mean of ratios would belong to the video that hardly moves.
    """
    if not rows:
        return {}
    names = [name for name in rows[0].figures if all(name in row.figures for row in rows)]
    found = {name: float(np.mean([row.figures[name] for row in rows])) for name in names}
    found |= {name: float(np.median([row.figures[name] for row in rows])) for name in TIMES if name in found}
    for name in ("flicker", "motion"):
        if f"ref_{name}" in found:
            whole = ratio(found[name], found[f"ref_{name}"])
            found.pop(f"{name}_ratio", None)
            found |= {} if whole is None else {f"{name}_ratio": whole}
    return found


def _cut(target_THWC: Frames, like_THWC: Frames) -> Frames:
    """As many frames of the target as were rendered."""
    return target_THWC[: len(like_THWC)]
