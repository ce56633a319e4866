"""The untrusted form of a recipe: what a user writes in a manifest, on the command line or in a request.

It has the recipe's field names, with files as paths, LoRAs as names or paths, and a seed and an id that may be
missing. A field left at None means "the card's default". A request opens no file and knows no card:
`sakuga.engine.resolve` makes the recipe of it.

Run its tests: pytest tests/unit/test_recipe.py
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from sakuga.errors import ImageError, InputError, RecipeError, VideoError, did_you_mean, shown
from sakuga.recipe.limits import (
    LIMITS,
    MAX_LORAS,
    check_characters,
    check_choice,
    check_number,
    check_prompt,
    check_sha256,
    check_slug,
    check_video_size,
)
from sakuga.recipe.values import (
    ATTENTIONS,
    CAMERA_DIRECTIONS,
    EXPERTS,
    IMAGE_ROLES,
    PRECISIONS,
    VIDEO_ROLES,
    StepCache,
    Tiling,
    check_camera,
    check_expert,
    check_unique,
)

MAX_PATH_CHARS = 4096  # PATH_MAX of Linux
MAX_SHOWN_ERRORS = 3
# Files may move between two runs, and a row with a LoRA should be comparable with the same row without: what names a
# file does not change the seed.
NOT_IN_SEED = frozenset({"id", "seed", "loras", *IMAGE_ROLES, *VIDEO_ROLES})
LORA_FORMS = (
    'a name ("fairy"), a name with a weight ("fairy:0.8", for one of two experts "fairy:0.8:high") '
    'or an object with "name" or "path", "weight" and "expert"'
)
STEP_CACHE_FORM = "KIND:THRESHOLD or KIND:THRESHOLD:REFRESH_EVERY, such as forecast:0.05"


class LoraRequest(BaseModel):
    """A LoRA by registered name or by path (exactly one of them), with its weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    path: str | None = None
    weight: float = 1.0
    expert: str | None = None

    @field_validator("expert", mode="before")
    @classmethod
    def _expert(cls, value: object) -> str | None:
        return check_expert(value)

    @field_validator("weight", mode="before")
    @classmethod
    def _weight(cls, value: object) -> int | float:
        return check_number("weight", value)

    @field_validator("path", mode="before")
    @classmethod
    def _path(cls, value: object) -> str | None:
        return None if value is None else check_path("loras.path", value, RecipeError)

    @model_validator(mode="after")
    def _one_of_both(self) -> "LoraRequest":
        if (self.name is None) == (self.path is None):
            raise RecipeError(f"a LoRA needs a name or a path, one of them; write {LORA_FORMS}")
        if self.name is not None:
            check_slug("loras.name", self.name)
        return self


class RecipeRequest(BaseModel):
    """One video as a user asks for it. Make it with `parse_request`, which turns pydantic's errors into ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = None
    """Names the row in reports and its files in the output folder."""
    model: str = "wan-mini"
    weights_sha256: str | None = None
    """When given, weights with another hash are refused."""
    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    boundary_ratio: float | None = None
    flow_shift: float | None = None
    seed: int | None = None
    denoising_strength: float | None = None
    camera_direction: str | None = None
    camera_speed: float | None = None
    motion_bucket_id: int | None = None
    input_image: str | None = None
    end_image: str | None = None
    reference_image: str | None = None
    input_video: str | None = None
    control_video: str | None = None
    vace_video: str | None = None
    vace_mask: str | None = None
    loras: tuple[LoraRequest, ...] = ()
    step_cache: StepCache | None = None
    precision: str | None = None
    attention: str = "auto"
    tiling: Tiling | None = None

    @field_validator(*(field for field in LIMITS if field not in ("weight", "numerics_version")), mode="before")
    @classmethod
    def _number(cls, value: object, info: ValidationInfo) -> int | float | None:
        return None if value is None else check_number(str(info.field_name), value)

    @field_validator("prompt", "negative_prompt", mode="before")
    @classmethod
    def _prompt(cls, value: object, info: ValidationInfo) -> str:
        return check_prompt(str(info.field_name), value, may_be_empty=info.field_name == "negative_prompt")

    @field_validator(*IMAGE_ROLES, mode="before")
    @classmethod
    def _image_path(cls, value: object, info: ValidationInfo) -> str | None:
        return None if value is None else check_path(str(info.field_name), value, ImageError)

    @field_validator(*VIDEO_ROLES, mode="before")
    @classmethod
    def _video_path(cls, value: object, info: ValidationInfo) -> str | None:
        return None if value is None else check_path(str(info.field_name), value, VideoError)

    @field_validator("id", mode="before")
    @classmethod
    def _id(cls, value: object) -> str | None:
        return None if value is None else check_id(value)

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: object) -> str:
        return check_slug("model", value)

    @field_validator("camera_direction", mode="before")
    @classmethod
    def _camera_direction(cls, value: object) -> str | None:
        return None if value is None else check_choice("camera_direction", value, CAMERA_DIRECTIONS)

    @field_validator("attention", mode="before")
    @classmethod
    def _attention(cls, value: object) -> str:
        return check_choice("attention", value, ATTENTIONS)

    @field_validator("weights_sha256", mode="before")
    @classmethod
    def _sha256(cls, value: object) -> str | None:
        return None if value is None else check_sha256("weights_sha256", value)

    @field_validator("precision", mode="before")
    @classmethod
    def _precision(cls, value: object) -> str | None:
        return None if value is None else check_choice("precision", value, PRECISIONS)

    @field_validator("loras", mode="before")
    @classmethod
    def _loras(cls, value: object) -> list[object]:
        return _lora_list(value)

    @field_validator("step_cache", mode="before")
    @classmethod
    def _step_cache(cls, value: object) -> object:
        return _step_cache_fields(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _together(self) -> "RecipeRequest":
        if self.width and self.height and self.num_frames:
            check_video_size(self.width, self.height, self.num_frames)
        check_camera(self.camera_direction, self.camera_speed)
        check_unique("loras", [str(lora.name or lora.path) for lora in self.loras])
        return self


REQUEST_FIELDS = tuple(RecipeRequest.model_fields)


def parse_request(values: Mapping[str, object], defaults: Mapping[str, object] | None = None) -> RecipeRequest:
    """The request of one row; a field that is missing or null is taken from `defaults`.

    Raises PromptError, GeometryError, ImageError, VideoError or RecipeError by the field at fault; a misspelt field
    is answered with the nearest name, and up to three further faults are in the same message.
    """
    unknown = [key for key in values if key not in REQUEST_FIELDS]
    if unknown:
        raise RecipeError(unknown_fields(unknown))
    merged = {**(defaults or {}), **{key: value for key, value in values.items() if value is not None}}
    try:
        return RecipeRequest.model_validate({key: value for key, value in merged.items() if value is not None})
    except ValidationError as error:
        raise _our_error(error) from None


def seed_from_content(row: Mapping[str, object]) -> int:
    """The seed (0 to 2**32 - 1) of a manifest row that has none: the same content gives the same seed in every run.

    Takes the row as written, without defaults, so that another number of steps on the command line keeps the seeds.
    Fields that name files, the LoRAs and the id do not count; 5, 5.0 and a missing field against null do not differ.
    """
    content = {key: _whole_if_possible(value) for key, value in row.items() if value is not None}
    counted = {key: value for key, value in content.items() if key not in NOT_IN_SEED}
    canonical = json.dumps(counted, sort_keys=True, separators=(",", ":"), default=_as_plain)
    # 32 bits: short enough to retype from a receipt; two rows that share a seed by chance do no harm.
    return int.from_bytes(hashlib.sha256(canonical.encode("ascii")).digest()[:4], "big")


def unknown_fields(unknown: list[str]) -> str:
    """The sentence about fields that a recipe does not have; names three and counts the rest."""
    named = ", ".join(f"{shown(key)}{did_you_mean(str(key), REQUEST_FIELDS)}" for key in unknown[:MAX_SHOWN_ERRORS])
    rest = f" and {len(unknown) - MAX_SHOWN_ERRORS} more" if len(unknown) > MAX_SHOWN_ERRORS else ""
    return f"no such field: {named}{rest}"


def check_path(field: str, value: object, error: type[InputError]) -> str:
    """A local path as text; whether it exists is seen when it is opened. Addresses are refused: nothing is fetched."""
    if not isinstance(value, str) or not value.strip():
        raise error(f"{field} is {shown(value)}; it must be the path of a file")
    if len(value) > MAX_PATH_CHARS:
        raise error(f"{field} has {len(value)} characters; a path has at most {MAX_PATH_CHARS}")
    check_characters(field, value, error=error)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise error(f"{field} is the address {shown(value)}; nothing is fetched, give the path of a local file")
    return value


def check_id(value: object) -> str:
    """An id that is also safe as a file name on every system; whole numbers become text."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w.-]{0,99}", value) or len(value.encode()) > 200:
        raise RecipeError(f"id is {shown(value)}; use up to 100 letters, digits, '.', '-' and '_', for file names")
    return value


def _lora_list(value: object) -> list[object]:
    """The accepted spellings as a list that LoraRequest validates.

    >>> _lora_list("fairy:0.8")
    [{'name': 'fairy', 'weight': 0.8}]
    """
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(entries) > MAX_LORAS:
        raise RecipeError(f"loras names {len(entries)} LoRAs; at most {MAX_LORAS} can be fused")
    return [_lora_entry(entry) for entry in entries]


def _lora_entry(entry: object) -> object:
    if isinstance(entry, (Mapping, LoraRequest)):
        return entry
    if not isinstance(entry, str) or not entry.strip():
        raise RecipeError(f"loras has the entry {shown(entry)}; write {LORA_FORMS}")
    text, colon, expert = entry.strip().rpartition(":")
    if not colon or expert not in EXPERTS:
        text, expert = entry.strip(), None
    name, colon, weight = text.rpartition(":")
    if not colon:
        name, weight = weight, "1"
    try:
        number = float(weight)
    except ValueError:
        raise RecipeError(f"loras has the entry {shown(entry)} whose weight is no number; write {LORA_FORMS}") from None
    where = "path" if "/" in name or name.endswith(".safetensors") else "name"
    return {where: name, "weight": number} | ({} if expert is None else {"expert": expert})


def _step_cache_fields(text: str) -> dict[str, object]:
    """The short spelling of a step cache.

    >>> _step_cache_fields("forecast:0.05"), _step_cache_fields("teacache:0.1:5")["refresh_every"]
    ({'kind': 'forecast', 'threshold_rel_l1': 0.05}, 5)
    """
    kind, *numbers = text.strip().split(":")
    try:
        threshold, *every = numbers
        fields: dict[str, object] = {"kind": kind, "threshold_rel_l1": float(threshold)}
        if every:
            (number,) = every
            fields["refresh_every"] = int(number)
    except ValueError:
        raise RecipeError(f"step_cache is {shown(text)}; write {STEP_CACHE_FORM}") from None
    return fields


def _our_error(error: ValidationError) -> InputError:
    """The first fault decides the class; further ones are added to its sentence."""
    faults = error.errors(include_url=False)
    messages = []
    kinds: list[type[InputError]] = []
    for fault in faults:
        original = fault.get("ctx", {}).get("error")
        field = ".".join(str(part) for part in fault["loc"]) or "recipe"
        if isinstance(original, InputError):
            messages.append(original.message)
            kinds.append(type(original))
        elif fault["type"] == "missing":
            messages.append(f"the field {field!r} is missing; add it")
            kinds.append(RecipeError)
        elif fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            messages.append(f"no such field: {shown(field)}{did_you_mean(field, REQUEST_FIELDS)}")
            kinds.append(RecipeError)
        else:
            messages.append(f"{field} is {shown(fault.get('input'))}; {fault['msg']}")
            kinds.append(RecipeError)
    rest = f"; and {len(messages) - MAX_SHOWN_ERRORS} more faults" if len(messages) > MAX_SHOWN_ERRORS else ""
    return kinds[0]("; ".join(messages[:MAX_SHOWN_ERRORS]) + rest)


def _whole_if_possible(value: object) -> object:
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def _as_plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
