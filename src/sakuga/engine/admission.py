"""What is asked before a render begins or goes on: is it for this engine, was it verified, does it fit?

Run: pytest tests/unit/test_engine_local.py tests/unit/test_admission.py
"""

import logging

import torch

from sakuga.cost import check_fits
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.task import check_task
from sakuga.engine.verified import check_verified, features
from sakuga.errors import ModelError, RecipeError, WeightsError
from sakuga.recipe import RenderRecipe
from sakuga.wan.loading import STAGES, LoadedModel

logger = logging.getLogger(__name__)


def admit(
    recipe: RenderRecipe, model: LoadedModel, execution: ExecutionPlan, memory_bytes: int | None
) -> tuple[str, ...]:
    """Notes for the receipt, if this engine can and may render the recipe; costs no model work.

    `memory_bytes` are the device's; None when nothing is known of it. Raises GeometryError, ModelError, RecipeError,
    WeightsError, UnverifiedError or MemoryLimitError.
    """
    check_task(recipe, model.card)
    _check_is_for(recipe, model)
    device = torch.device(model.pipe.device)
    if memory_bytes is not None and model.stages == STAGES:
        check_fits(recipe, model.card, execution, memory_bytes, str(device))
    found = features(recipe, model.card, execution)
    return check_verified(found, device.type, allow=execution.allow_unverified)


def _check_is_for(recipe: RenderRecipe, model: LoadedModel) -> None:
    if recipe.model != model.card.name:
        raise ModelError(f"this engine holds {model.card.name}, the recipe asks for {recipe.model}; load that one")
    if recipe.weights_sha256 != model.weights_sha256:
        raise WeightsError(
            f"the recipe asks for weights {recipe.weights_sha256[:12]}, this engine holds "
            f"{model.weights_sha256[:12]}; load those weights or leave weights_sha256 out"
        )
    if recipe.precision != model.precision:
        raise RecipeError(
            f"the recipe asks for {recipe.precision}, this engine runs in {model.precision}; load it in that"
        )


def prompt_notes(recipe: RenderRecipe, model: LoadedModel) -> tuple[str, ...]:
    """What of the prompts the tokenizer leaves out."""
    limit = model.card.tokenizer_max_tokens
    notes = []
    for name in ("prompt", "negative_prompt"):
        ids = model.pipe.tokenizer(getattr(recipe, name), padding=False, truncation=False)
        num_tokens = ids.shape[1]
        if num_tokens > limit:
            notes.append(f"{name} has {num_tokens} tokens; the tokenizer stops at {limit}, the rest has no effect")
            logger.warning("%s key=%s", notes[-1], recipe.render_key[:12])
    return tuple(notes)
