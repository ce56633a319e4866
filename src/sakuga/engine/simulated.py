"""An engine that takes the time of a render and makes no picture: hundreds of lanes on two cores.

Every stage sleeps as long as the cost model predicts for a device, divided by `speed`. States, snapshots and the loop
are the real ones, so that stores, lanes and schedulers meet what they meet with a real engine.

Run: pytest tests/unit/test_simulated.py
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from sakuga.cost import DeviceSpec, Estimate, estimate
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.schedule import noise_levels
from sakuga.engine.snapshot import load_state, save_state
from sakuga.engine.state import Conditioning, RenderInputs, RenderState, Video
from sakuga.recipe import RenderRecipe
from sakuga.wan.catalogue import card

NOTHING = (1, 1, 1, 1, 1)
"""Shape of latents that hold no picture."""


class SimEngine:
    """Sleeps through renders on one device under one plan."""

    def __init__(
        self,
        device: DeviceSpec,
        execution: ExecutionPlan | None = None,
        *,
        speed: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device, self.execution, self.speed = device, execution or ExecutionPlan(), speed
        self._sleep = sleep

    def start(self, recipe: RenderRecipe, inputs: RenderInputs) -> RenderState:
        self._take(self._estimate(recipe).encode_s)
        return RenderState(
            recipe=recipe,
            conditioning=Conditioning(context_positive_BLD=torch.zeros(1, 1, 1)),
            latents_BCTHW=torch.zeros(NOTHING),
            sigmas=noise_levels(
                recipe.num_inference_steps, shift=recipe.flow_shift, denoising_strength=recipe.denoising_strength
            ),
            plan=str(self.execution),
            encode_s=self._estimate(recipe).encode_s,
        )

    def step(self, state: RenderState) -> RenderState:
        step_s = self._estimate(state.recipe).step_s
        self._take(step_s)
        return state.advanced(state.latents_BCTHW, state.latents_BCTHW, step_s, {}, 0)

    def finish(self, state: RenderState) -> Video:
        predicted = self._estimate(state.recipe)
        self._take(predicted.decode_s)
        seconds = {"encode": state.encode_s, "denoise": sum(state.step_s), "decode": predicted.decode_s}
        return Video(
            frames_THWC=np.full((1, 16, 16, 3), 128, np.uint8),
            fps=state.recipe.fps,
            seconds=seconds | {"total": sum(seconds.values())},
            step_s=state.step_s,
            plan=state.plan,
            notes=("simulated: no picture was made",),
        )

    def snapshot(self, state: RenderState, path: Path) -> None:
        save_state(state, path)

    def restore(self, path: Path, recipe: RenderRecipe | None = None) -> RenderState:
        return load_state(path, torch.device("cpu"))

    def add_loras(self, paths: Sequence[Path]) -> None:
        """None are read."""

    def receipt(self, recipe: RenderRecipe, video: Video) -> dict[str, object]:
        return {
            "key": recipe.render_key,
            "recipe": recipe.as_dict(),
            "device": self.device.name,
            "seconds": dict(video.seconds),
            "notes": list(video.notes),
        }

    def _estimate(self, recipe: RenderRecipe) -> Estimate:
        return estimate(recipe, card(recipe.model), self.execution, self.device)

    def _take(self, seconds: float) -> None:
        self._sleep(seconds / self.speed)
