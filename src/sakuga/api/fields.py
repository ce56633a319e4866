"""From what a client sent to what it wants: names checked, text of forms turned into numbers, pictures found.

Nothing is opened here and no model is known; `preparing.py` goes on.     Run: pytest tests/unit/test_api_fields.py
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sakuga.api.body import Sent, parse_json, parse_object
from sakuga.errors import InputError, RecipeError, did_you_mean, shown
from sakuga.jobstore import PRIORITIES
from sakuga.recipe import IMAGE_ROLES, LIMITS, VIDEO_ROLES
from sakuga.recipe.limits import check_choice, check_slug
from sakuga.recipe.request import MAX_SHOWN_ERRORS, REQUEST_FIELDS
from sakuga.tuning.choice import QUALITIES

ROLES = (*IMAGE_ROLES, *VIDEO_ROLES)
FILE_FIELDS = ("input_reference", *ROLES)
"""Parts of a form that may be files."""
RECIPE_FIELDS = tuple(name for name in REQUEST_FIELDS if name not in (*ROLES, "id"))
ORDER_FIELDS = ("size", "seconds", "profile", "quality", "priority", "deadline_s", "webhook_url", "extra_params")
REFERENCES = {
    "input_reference": "input_image",
    "input_reference[image_url]": "input_image",
    "image_url": "input_image",
} | {role: role for role in ROLES}
"""Fields that say where a picture or a video is, by its role."""
FILE_IDS = ("input_reference[file_id]", "file_id")
KNOWN = (*RECIPE_FIELDS, *ORDER_FIELDS, *REFERENCES, *FILE_IDS)
NUMBERS = frozenset(LIMITS) | {"deadline_s"}
STRUCTURED = ("loras", "step_cache", "tiling")
NUMBER = re.compile(r"[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})([eE][+-]?\d{1,4})?", re.ASCII)
SIZE = re.compile(r"(\d{1,6})x(\d{1,6})", re.ASCII)
MAX_SECONDS = 3600.0
MAX_DEADLINE_S = 30 * 86400.0
MAX_URL_CHARS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A request for a video, its fields sorted; those of the recipe are not checked yet."""

    recipe: Mapping[str, object]
    seconds: float | None = None
    profile: str | None = None
    quality: str | None = None
    priority: str = "normal"
    deadline_s: float | None = None
    webhook_url: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    """By role, as uploaded."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """By role: data: or https:."""


def wish_of(sent: Sent) -> Wish:
    """Raises RecipeError, InputError or BodyError."""
    fields = {name: value for name, value in _with_extra(sent).items() if value is not None}
    unknown = [name for name in fields if name not in KNOWN]
    if unknown:
        named = ", ".join(f"{shown(name)}{did_you_mean(name, KNOWN)}" for name in unknown[:MAX_SHOWN_ERRORS])
        hint = "; a form has no lists and objects, send them in extra_params" if "[" in named else ""
        raise RecipeError(f"no such field: {named}{hint}")
    if any(name in fields for name in FILE_IDS):
        raise InputError("this farm keeps no files to be named by file_id; send the picture with the request")
    if sent.is_form:
        fields = {name: _typed(name, value) for name, value in fields.items()}
    recipe = {name: value for name, value in fields.items() if name in RECIPE_FIELDS}
    seconds = None
    if "seconds" in fields:
        seconds = check_seconds(fields["seconds"])
        if "num_frames" in recipe:
            raise RecipeError("seconds and num_frames both say how long the video is; give one of them")
    files, addresses = _inputs(sent, fields)
    return Wish(
        recipe=recipe | _size(fields),
        seconds=seconds,
        profile=check_slug("profile", fields["profile"]) if "profile" in fields else None,
        quality=check_choice("quality", fields["quality"], QUALITIES) if "quality" in fields else None,
        priority=check_choice("priority", fields.get("priority", "normal"), tuple(PRIORITIES)),
        deadline_s=_deadline(fields.get("deadline_s")),
        webhook_url=_url(fields.get("webhook_url")),
        files=files,
        addresses=addresses,
    )


def check_seconds(value: object) -> float:
    """A length as OpenAI's clients send it, a string, or a number.

    >>> check_seconds("4"), check_seconds(5.5)
    (4.0, 5.5)
    """
    number = _to_number(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number <= MAX_SECONDS:
        raise RecipeError(f"seconds is {shown(value)}; it must be a number above 0, such as '4'")
    return float(number)


def _with_extra(sent: Sent) -> dict[str, object]:
    """The fields with those of `extra_params` beside them."""
    fields = dict(sent.fields)
    extra = fields.pop("extra_params", None)
    if extra is None:
        return fields
    inner = parse_object(extra) if isinstance(extra, str) else extra
    if not isinstance(inner, Mapping):
        raise RecipeError(f"extra_params is {shown(extra)}; it must be one JSON object of further fields")
    twice = next((name for name in inner if name in fields), None)
    if twice is not None:
        raise RecipeError(f"{twice} stands in extra_params and outside; give it once")
    return fields | {str(name): value for name, value in inner.items()}


def _typed(name: str, value: object) -> object:
    """A form's text as what the field holds; what is no number stays text, for the error's sentence."""
    if not isinstance(value, str):
        return value
    if name in NUMBERS:
        return _to_number(value)
    return parse_json(value) if name in STRUCTURED and value.lstrip()[:1] in ("[", "{") else value


def _to_number(text: str) -> int | float | str:
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return text
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def _size(fields: Mapping[str, object]) -> dict[str, object]:
    if "size" not in fields:
        return {}
    if "width" in fields or "height" in fields:
        raise RecipeError("size and width or height both say how large the video is; give one of them")
    match = SIZE.fullmatch(fields["size"]) if isinstance(fields["size"], str) else None
    if match is None:
        raise RecipeError(f"size is {shown(fields['size'])}; write it as WIDTHxHEIGHT, such as '1280x720'")
    return {"width": int(match[1]), "height": int(match[2])}


def _deadline(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_DEADLINE_S:
        raise RecipeError(f"deadline_s is {shown(value)}; it must be a number of seconds from now, up to 30 days")
    return float(value)


def _url(value: object) -> str | None:
    """Where it leads is checked by whoever dials it."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or len(value) > MAX_URL_CHARS:
        raise RecipeError(f"webhook_url is {shown(value)}; it must be an https address of {MAX_URL_CHARS} characters")
    return value


def _inputs(sent: Sent, fields: Mapping[str, object]) -> tuple[dict[str, Path], dict[str, str]]:
    """Uploaded files and addresses by role, each role once."""
    files: dict[str, Path] = {}
    addresses: dict[str, str] = {}
    for name, path in sent.files.items():
        role = REFERENCES[name]
        _check_free(role, files)
        files[role] = path
    for name, address in _addresses(fields):
        role = REFERENCES[name]
        _check_free(role, files | addresses)
        if not address.startswith(("data:", "http://", "https://")):
            raise RecipeError(f"{name} must be a file of the form or a data: address; no path is read here")
        addresses[role] = address
    return files, addresses


def _addresses(fields: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name in REFERENCES:
        value = fields.get(name)
        if name == "input_reference" and isinstance(value, Mapping):
            if "file_id" in value:
                raise InputError("this farm keeps no files to be named by file_id; send the picture with the request")
            if set(value) != {"image_url"}:
                raise RecipeError("input_reference must be a file or an object with image_url and nothing else")
            value = value["image_url"]
        if value is None:
            continue
        if not isinstance(value, str):
            raise RecipeError(f"{name} is {shown(value)}; it must be a file of the form or a data: address")
        yield name, value


def _check_free(role: str, taken: Mapping[str, object]) -> None:
    if role in taken:
        raise RecipeError(f"{role} is given twice, as a file, an address or an input_reference; give one of them")


def seconds_text(seconds: float) -> str:
    """As OpenAI's clients expect it.

    >>> seconds_text(4.0), seconds_text(33 / 15)
    ('4', '2.2')
    """
    return f"{seconds:.0f}" if math.isclose(seconds, round(seconds)) else f"{seconds:.3f}".rstrip("0")
