"""What a render does to the pictures and videos that it is given: said aloud, in the notes of its receipt.

Pure: looks at sizes only; `engine/encode.py` does the cutting.     Run: pytest tests/unit/test_engine_notes.py
"""

from sakuga.engine.state import RenderInputs
from sakuga.recipe import RenderRecipe


def input_notes(recipe: RenderRecipe, inputs: RenderInputs) -> tuple[str, ...]:
    """One sentence for each input that does not go in whole: its sides are cropped, or its end is cut off."""
    notes = list(inputs.notes)
    for role, image in inputs.images.items():
        notes += _crop_note(role, image.width, image.height, recipe)
    for role, video_THWC in inputs.videos.items():
        num_frames, height, width = video_THWC.shape[:3]
        if num_frames > recipe.num_frames:
            notes.append(f"{role} has {num_frames} frames, the first {recipe.num_frames} are used")
        notes += _crop_note(role, width, height, recipe)
    return tuple(notes)


def _crop_note(role: str, width: int, height: int, recipe: RenderRecipe) -> list[str]:
    """Empty when the whole picture fits, to the nearest pixel."""
    scale = min(width / recipe.width, height / recipe.height)
    used = round(recipe.width * scale), round(recipe.height * scale)
    if used == (width, height):
        return []
    return [f"{role} is {width}x{height}, its middle {used[0]}x{used[1]} is used for {recipe.width}x{recipe.height}"]
