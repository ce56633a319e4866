"""Which kind of render a recipe asks for, and whether a card can do it; decided before any model work.

Pure: looks at a recipe and a card only.     Run: pytest tests/unit/test_engine_resolve.py
"""

from sakuga.errors import ModelError, RecipeError
from sakuga.recipe import RenderRecipe
from sakuga.wan.caching import make_rule
from sakuga.wan.cards import ModelCard

TASK_WORDS = {
    "t2v": "render from text alone; give an input_image",
    "i2v": "take an input_image",
    "flf2v": "take an end_image",
    "v2v": "take an input_video",
    "control": "take a control_video",
    "vace": "take a vace_video or vace_mask",
    "camera": "take a camera_direction",
}
"""What a model without that task cannot do."""


def task_of(recipe: RenderRecipe, card: ModelCard) -> str:
    """The task that the recipe's images and videos add up to.

    >>> # no image: "t2v"; input_image: "i2v"; with end_image: "flf2v"; input_video: "v2v"
    """
    images = {ref.role for ref in recipe.images}
    videos = {ref.role for ref in recipe.videos}
    if recipe.camera_direction is not None:
        return "camera"
    if "control_video" in videos:
        return "control"
    if videos & {"vace_video", "vace_mask"} or ("reference_image" in images and "vace" in card.tasks):
        return "vace"
    if "end_image" in images:
        return "flf2v"
    if "input_image" in images:
        return "i2v"
    return "v2v" if "input_video" in videos else "t2v"


def check_task(recipe: RenderRecipe, card: ModelCard) -> str:
    """The task, if the card and the recipe agree on it.

    Raises GeometryError for a size that the card cannot render, ModelError for a task that it does not have,
    RecipeError for fields that do not go together.
    """
    card.check_geometry(recipe.width, recipe.height, recipe.num_frames)
    roles = {ref.role for ref in (*recipe.images, *recipe.videos)}
    if recipe.step_cache is not None:
        make_rule(recipe.step_cache, card)
    if "end_image" in roles and "input_image" not in roles:
        raise RecipeError("an end_image needs an input_image for the first frame; give both")
    if "end_image" in roles and recipe.num_frames == 1:
        raise RecipeError("a single frame cannot begin with one picture and end with another; render 5 frames or more")
    if recipe.denoising_strength < 1 and "input_video" not in roles:
        raise RecipeError("denoising_strength below 1 starts from a video; give an input_video or leave it at 1")
    if "vace_mask" in roles and "vace_video" not in roles:
        raise RecipeError("a vace_mask says which parts of a vace_video to redraw; give both")
    if not card.two_experts and (recipe.guidance_scale_2 is not None or recipe.boundary_ratio is not None):
        raise RecipeError(f"guidance_scale_2 and boundary_ratio are for models with two experts; {card.name} has one")
    if not card.two_experts and any(ref.expert is not None for ref in recipe.loras):
        raise RecipeError(f"a LoRA's expert is for models with two; {card.name} has one, leave it out")
    if recipe.motion_bucket_id is not None and not card.controls_speed:
        raise RecipeError(f"a motion_bucket_id is for models with speed control; {card.name} has none, leave it out")
    if card.tasks == ("camera",) and recipe.camera_direction is None:
        raise RecipeError(f"{card.name} moves a camera away from an input_image; give it and a camera_direction")
    task = task_of(recipe, card)
    if task not in card.tasks:
        raise ModelError(f"{card.name} cannot {TASK_WORDS[task]}; it can do {', '.join(card.tasks)}")
    if task == "camera" and roles != {"input_image"}:
        raise RecipeError("a camera moves away from an input_image; give that one and no other image or video")
    if "reference_image" in roles and not card.takes_reference:
        raise ModelError(f"{card.name} takes no reference_image; leave it out")
    return task
