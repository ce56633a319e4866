"""The renderer of bulk runs and of `sakuga render`: the engine behind the `Renderer` protocol.

Loads a model when the first row needs it and keeps it while rows ask for the same one.

Run: pytest tests/ray/test_submit.py
"""

from collections.abc import Mapping
from pathlib import Path

from sakuga.engine.artifacts import write_render
from sakuga.engine.local import LocalEngine
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.resolve import resolve
from sakuga.engine.state import RenderInputs, StepEvent
from sakuga.farm.worker import OnStep, RenderPlan
from sakuga.recipe import RecipeRequest, RenderRecipe
from sakuga.wan.catalogue import card
from sakuga.wan.memory import MemoryPlan


class EngineRenderer:
    """Requests in, files of a `LocalEngine` out."""

    def __init__(self, plan: RenderPlan) -> None:
        self._plan = plan
        self._engine: LocalEngine | None = None
        self._loaded: tuple[str, str] | None = None

    def key(self, request: RecipeRequest) -> str:
        return self._resolve(request)[0].render_key

    def render(self, request: RecipeRequest, name: str, on_step: OnStep) -> Mapping[str, object]:
        def on_event(event: StepEvent) -> None:
            on_step(event.stage, event.step, event.num_steps, event.step_s)

        recipe, inputs = self._resolve(request)
        engine = self._engine_for(recipe)
        video = engine.render(recipe, inputs, on_event)
        receipt = engine.receipt(recipe, video)
        write_render(video, receipt, Path(self._plan.out), name)
        return receipt

    def _resolve(self, request: RecipeRequest) -> tuple[RenderRecipe, RenderInputs]:
        recipe, inputs, _ = resolve(request, card(request.model), Path(self._plan.base_dir), self._plan.weights)
        return recipe, inputs

    def _engine_for(self, recipe: RenderRecipe) -> LocalEngine:
        wanted = (recipe.model, recipe.precision)
        if self._engine is None or self._loaded != wanted:
            self._engine = None  # first: two large models do not fit beside each other
            if self._plan.num_threads is not None:
                import torch

                torch.set_num_threads(self._plan.num_threads)
            options = self._plan.engine
            self._engine = LocalEngine.load(
                recipe.model,
                self._plan.weights,
                device=self._plan.device,
                precision=recipe.precision,
                execution=ExecutionPlan(
                    memory=MemoryPlan.parse(options.memory),
                    compile=options.compile,
                    hot_loras=options.hot_loras,
                    allow_unverified=options.allow_unverified,
                ),
            )
            self._loaded = wanted
        return self._engine
