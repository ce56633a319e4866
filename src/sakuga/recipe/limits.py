"""Rules for single fields of a recipe that hold for every model; shared by the recipe and by the form users write.

Each check takes a field's name and value and gives the value back in its canonical type (5 becomes 5.0 for a float
field, so that equal recipes have equal keys) or raises the error of that field.

Run its tests: pytest tests/unit/test_recipe.py
"""

import math
import re
from dataclasses import dataclass

from sakuga.errors import GeometryError, InputError, PromptError, RecipeError, did_you_mean, shown

MAX_PROMPT_CHARS = 32_000
MAX_SEED = 2**63 - 1  # torch generators take a signed 64-bit seed; negative ones would be a second name for the same
MAX_VIDEO_PIXELS = 2**31  # width x height x frames: 1080p for a minute; its RGB frames alone take 6.4 GB
MAX_LORAS = 16
SHA256_HEX = re.compile(r"[0-9a-f]{64}")
NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode's categories Cc and Cs
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The legal range of a number, both ends included."""

    low: int | float
    high: int | float
    whole: bool
    error: type[InputError] = RecipeError

    def __str__(self) -> str:
        return f"{'a whole number' if self.whole else 'a number'} from {self.low} to {self.high}"


LIMITS: dict[str, Limit] = {
    "width": Limit(low=16, high=4096, whole=True, error=GeometryError),
    "height": Limit(low=16, high=4096, whole=True, error=GeometryError),
    "num_frames": Limit(low=1, high=10_001, whole=True, error=GeometryError),
    "fps": Limit(low=1, high=120, whole=True),
    "num_inference_steps": Limit(low=1, high=1000, whole=True),  # Wan was trained on 1000 timesteps
    "guidance_scale": Limit(low=0.0, high=100.0, whole=False),
    "guidance_scale_2": Limit(low=0.0, high=100.0, whole=False),
    "boundary_ratio": Limit(low=0.0, high=1.0, whole=False),
    "flow_shift": Limit(low=0.01, high=100.0, whole=False),
    "seed": Limit(low=0, high=MAX_SEED, whole=True),
    "denoising_strength": Limit(low=0.01, high=1.0, whole=False),  # at 0 no step would be left
    "camera_speed": Limit(low=0.0, high=1.0, whole=False),  # DiffSynth's examples take 0.01
    "motion_bucket_id": Limit(low=0, high=100, whole=True),
    "weight": Limit(low=-4.0, high=4.0, whole=False),  # of a LoRA; beyond it every known one breaks the picture
    "numerics_version": Limit(low=1, high=10_000, whole=True),
}
OPTIONAL_NUMBERS = frozenset({"guidance_scale_2", "boundary_ratio", "camera_speed", "motion_bucket_id"})


def check_number(field: str, value: object) -> int | float:
    """The value of a number field of `LIMITS`, as int or float; raises that field's error."""
    limit = LIMITS[field]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise limit.error(f"{field} is {shown(value)} ({_kind(value)}); it must be {limit}")
    if isinstance(value, float) and not math.isfinite(value):
        raise limit.error(f"{field} is {value}; it must be {limit}")
    if not limit.low <= value <= limit.high or (limit.whole and value != int(value)):
        raise limit.error(f"{field} is {shown(value)}; it must be {limit}")
    return int(value) if limit.whole else float(value) + 0.0  # + 0.0 turns -0.0 into 0.0: one recipe, one key


def check_video_size(width: int, height: int, num_frames: int) -> None:
    """Refuses a video that no machine could hold, before anything is allocated for it."""
    if width * height * num_frames > MAX_VIDEO_PIXELS:
        raise GeometryError(
            f"{width}x{height} with {num_frames} frames is more than {MAX_VIDEO_PIXELS} pixels in all; "
            f"at this size at most {MAX_VIDEO_PIXELS // (width * height)} frames can be rendered"
        )


def check_prompt(field: str, value: object, *, may_be_empty: bool = False) -> str:
    """A prompt: text, not blank, at most `MAX_PROMPT_CHARS`, line breaks and tabs but no other control characters."""
    if not isinstance(value, str):
        raise PromptError(f"{field} is {shown(value)} ({_kind(value)}); it must be text")
    if not may_be_empty and not value.strip():
        raise PromptError(f"{field} is empty; say what the video shows")
    if len(value) > MAX_PROMPT_CHARS:
        raise PromptError(f"{field} has {len(value)} characters; at most {MAX_PROMPT_CHARS} are taken")
    check_characters(field, value, allowed="\n\r\t", error=PromptError)
    return value


def check_characters(field: str, value: str, *, allowed: str = "", error: type[InputError] = RecipeError) -> None:
    """Refuses control characters (terminal escapes, NUL) and surrogates, which UTF-8 cannot hold."""
    for match in NOT_TEXT.finditer(value):
        if match[0] not in allowed:
            code = f"U+{ord(match[0]):04X}"
            raise error(f"{field} has the control character {code} at position {match.start()}; remove it")


def check_slug(field: str, value: object, error: type[InputError] = RecipeError) -> str:
    """A name made of letters, digits, dot, dash and underscore, at most 100; never a path."""
    if not isinstance(value, str) or not SLUG.fullmatch(value):
        raise error(f"{field} is {shown(value)}; it must be a name of letters, digits, '.', '-' and '_'")
    return value


def check_sha256(field: str, value: object) -> str:
    """64 lower-case hexadecimal digits."""
    if not isinstance(value, str) or not SHA256_HEX.fullmatch(value):
        raise RecipeError(f"{field} is {shown(value)}; it must be a sha256 of 64 lower-case hexadecimal digits")
    return value


def check_choice(field: str, value: object, choices: tuple[str, ...]) -> str:
    """One of a few names; a near miss is named."""
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(str(value), choices) or f"; it must be one of {', '.join(choices)}"
        raise RecipeError(f"{field} is {shown(value)}{hint}")
    return value


def _kind(value: object) -> str:
    names = {
        str: "text",
        bool: "true or false",
        list: "a list",
        tuple: "a list",
        dict: "an object",
        type(None): "null",
        int: "a number",
    }
    return names.get(type(value), type(value).__name__)
