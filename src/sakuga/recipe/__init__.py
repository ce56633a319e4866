"""What is rendered: the recipe that travels (`RenderRecipe`) and the form that users write (`RecipeRequest`).

`values` holds the recipe and its key, `request` the untrusted form, `limits` the rules that both share. None of them
knows a model card: sizes in multiples of 16 or frames of 4n+1 are the card's rules.

Run the tests: pytest tests/unit/test_recipe.py
"""

from sakuga.recipe.limits import LIMITS, MAX_PROMPT_CHARS, MAX_SEED
from sakuga.recipe.request import LoraRequest, RecipeRequest, parse_request, seed_from_content
from sakuga.recipe.values import (
    ATTENTIONS,
    CAMERA_DIRECTIONS,
    CAMERA_SPEED,
    EXPERTS,
    IMAGE_ROLES,
    NUMERICS_VERSION,
    PRECISIONS,
    VIDEO_ROLES,
    ImageRef,
    LoraRef,
    RenderRecipe,
    StepCache,
    Tiling,
    VideoRef,
)

__all__ = [
    "ATTENTIONS",
    "CAMERA_DIRECTIONS",
    "CAMERA_SPEED",
    "EXPERTS",
    "IMAGE_ROLES",
    "LIMITS",
    "MAX_PROMPT_CHARS",
    "MAX_SEED",
    "NUMERICS_VERSION",
    "PRECISIONS",
    "VIDEO_ROLES",
    "ImageRef",
    "LoraRef",
    "LoraRequest",
    "RecipeRequest",
    "RenderRecipe",
    "StepCache",
    "Tiling",
    "VideoRef",
    "parse_request",
    "seed_from_content",
]
