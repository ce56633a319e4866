"""TeaCache's polynomial for any model: full renders, a pair of changes from each step, and a fit through all of them.

TeaCache (Liu et al. 2024, arXiv 2411.19108) guesses how much a step would change the output from how much the time
embedding's modulation changed, by a polynomial of degree 4 that is fitted once for a model. The changes are those that
`wan.caching.teacache` measures, of both guidance branches and of both experts together.

Coefficients decide which steps are computed, so they belong to what a recipe names: a card carries them
(`teacache_fitted`), and nothing is read from a user's folder.     Run: pytest tests/unit/test_calibrate.py
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image

from sakuga.engine.local import LocalEngine
from sakuga.engine.state import RenderInputs, RenderState
from sakuga.errors import InputError
from sakuga.media import image_sha256
from sakuga.recipe import ImageRef, RenderRecipe
from sakuga.wan.caching import EMPTY, BranchCache, observer
from sakuga.wan.cards import ModelCard
from sakuga.wan.loading import LoadedModel

DEGREE = 4
MIN_STEPS = DEGREE + 3
"""The first two and the last step give no pair, and the changes of a step are alike in all renders."""
VALIDATION_SEED = 2**25
"""The first seed of drawn dancers that no training saw and no benchmark is judged on."""

Task = tuple[RenderRecipe, RenderInputs]
OnRender = Callable[[int], None]
"""Called after each render with their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A polynomial through pairs of changes."""

    coefficients: tuple[float, ...]
    """Highest power first."""
    num_pairs: int
    r_squared: float
    """Share of the variance of the output's changes that it explains."""
    mean_rel_error: float
    """Mean distance from the pairs over their mean."""
    input_changes: tuple[float, float]
    """Smallest and largest; outside the polynomial means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fit and what it was made of."""

    model: str
    weights_sha256: str
    precision: str
    num_renders: int
    num_inference_steps: tuple[int, ...]
    flow_shift: tuple[float, ...]
    guidance_scale: tuple[float, ...]
    fit: Fit

    def as_dict(self) -> dict[str, object]:
        plain = asdict(self)
        return {name: value for name, value in plain.items() if name != "fit"} | plain["fit"]


class ObservingEngine(LocalEngine):
    """Renders in full and keeps the pair of changes of every step and branch."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        self.pairs: list[tuple[float, float]] = []
        self._rule = observer(lambda *pair: self.pairs.append(pair))

    def observe(self, recipe: RenderRecipe, inputs: RenderInputs) -> None:
        """A render without its last stage."""
        state = self.start(recipe, inputs)
        while not state.is_done:
            state = self.step(state)

    def _branch_velocity(
        self, state: RenderState, branch: str, timestep: torch.Tensor, *, low_noise: bool
    ) -> tuple[torch.Tensor, dict[str, BranchCache], int]:
        evaluation = self._evaluation(state, branch, timestep, low_noise=low_noise)
        name = f"{branch}.{int(low_noise)}"
        velocity, cache = self._rule(evaluation, state.caches.get(name, EMPTY))
        return velocity.float(), {name: cache}, evaluation.num_blocks_run


def calibrate_cache(
    engine: ObservingEngine, tasks: Sequence[Task], on_render: OnRender = lambda _: None
) -> Calibration:
    """Render all tasks in full and fit the polynomial. Raises InputError for renders of too few steps."""
    recipes = [recipe for recipe, _ in tasks]
    least = min(recipe.num_inference_steps for recipe in recipes)
    if least < MIN_STEPS:
        raise InputError(f"{least} steps cannot fix a polynomial of degree {DEGREE}; take {MIN_STEPS} or more")
    for done, (recipe, inputs) in enumerate(tasks, start=1):
        engine.observe(recipe, inputs)
        on_render(done)
    return Calibration(
        model=engine.card.name,
        weights_sha256=engine.model.weights_sha256,
        precision=engine.model.precision,
        num_renders=len(recipes),
        num_inference_steps=tuple(sorted({recipe.num_inference_steps for recipe in recipes})),
        flow_shift=tuple(sorted({recipe.flow_shift for recipe in recipes})),
        guidance_scale=tuple(sorted({recipe.guidance_scale for recipe in recipes})),
        fit=fit_changes(engine.pairs),
    )


def fit_changes(pairs: Sequence[tuple[float, float]]) -> Fit:
    """Least squares over (input change, output change)."""
    x, y = np.array(pairs, dtype=np.float64).T
    # Seven digits, for a line that can be read: the pairs scatter by per cents.
    coefficients = [float(f"{value:.7g}") for value in np.polyfit(x, y, DEGREE)]
    errors = y - np.polyval(coefficients, x)
    variance = float(((y - y.mean()) ** 2).sum())
    return Fit(
        coefficients=tuple(coefficients),
        num_pairs=len(pairs),
        r_squared=1 - float((errors**2).sum()) / variance if variance else 1.0,
        mean_rel_error=float(np.abs(errors).mean() / y.mean()),
        input_changes=(float(x.min()), float(x.max())),
    )


def drawn_tasks(card: ModelCard, weights_sha256: str, count: int, steps: Sequence[int]) -> list[Task]:
    """Text-to-video and image-to-video of drawn dancers, `count` of each and for each number of steps."""
    from sakuga.synth import make_sample

    tasks: list[Task] = []
    for num_steps in steps:
        for seed in range(VALIDATION_SEED, VALIDATION_SEED + count):
            sample = make_sample(seed, "live")
            image = Image.fromarray(sample.input_image_HWC)
            ref = ImageRef(role="input_image", sha256=image_sha256(image))
            for refs, images in ((), {}), ((ref,), {"input_image": image}):
                recipe = RenderRecipe(
                    model=card.name, weights_sha256=weights_sha256, prompt=sample.prompt, seed=seed, fps=card.fps,
                    guidance_scale=card.guidance_scale, num_inference_steps=num_steps, flow_shift=card.flow_shift,
                    width=card.width, height=card.height, num_frames=card.num_frames, images=refs,
                )  # fmt: skip
                tasks.append((recipe, RenderInputs(images=images)))
    return tasks
