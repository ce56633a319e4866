"""Bodies of requests, read strictly: JSON, multipart forms and plain forms, every field once, files into a folder.

A field that comes twice, NaN, or a nesting that no request needs is refused, since what reads them next might see
something else than what was checked.     Run: pytest tests/unit/test_api_bad_input.py
"""

import hashlib
import json
import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from sakuga.api.errors import BodyError, MediaTypeError, TooLargeError
from sakuga.errors import RecipeError, did_you_mean, shown
from sakuga.media.files import sha256_of

MAX_FORM_FIELDS = 100
MAX_TEXT_BYTES = 2**16
MAX_DEPTH = 16
"""Of JSON; a recipe has three levels."""
MAX_FORM_FILES = 8
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a client sent."""

    fields: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    """By field; as uploaded, nothing of them is known yet."""
    is_form: bool = False
    """All fields are text."""

    def fingerprint(self, of: str) -> str:
        """The same for the same request to the same place, whatever its boundaries and order of fields."""
        hashes = {name: sha256_of(path) for name, path in self.files.items()}
        canonical = json.dumps([of, dict(self.fields), hashes], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


async def read_body(
    request: Request, folder: Path, file_fields: Collection[str], *, max_text_bytes: int = MAX_TEXT_BYTES
) -> Sent:
    """The fields and files of a request; what is no file is kept in memory, up to `max_text_bytes` of each.

    Raises BodyError, MediaTypeError or TooLargeError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return Sent(fields=parse_object(await read_text(request, max_text_bytes)))
    if kind not in FORMS:
        raise MediaTypeError(f"the body is {shown(kind or 'of no type')}; send multipart/form-data or application/json")
    async with request.form(max_files=MAX_FORM_FILES, max_fields=MAX_FORM_FIELDS, max_part_size=max_text_bytes) as form:
        return await run_in_threadpool(_taken, form, folder, file_fields)


async def read_text(request: Request, max_bytes: int) -> bytes:
    """A whole body. Raises TooLargeError."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > max_bytes:
            raise TooLargeError(f"the body has more than {max_bytes} bytes, the limit here; make it smaller")
    return bytes(text)


def _taken(form: FormData, folder: Path, file_fields: Collection[str]) -> Sent:
    fields: dict[str, object] = {}
    files: dict[str, Path] = {}
    for name, value in form.multi_items():
        if name in fields or name in files:
            raise BodyError(f"the field {shown(name)} comes twice; send it once")
        if not isinstance(value, UploadFile):
            fields[name] = value
        elif name not in file_fields:
            raise RecipeError(f"no such file: {shown(name)}{did_you_mean(name, file_fields)}")
        elif value.size or value.filename:  # a browser's form sends an empty part for a file that was not chosen
            files[name] = folder / f"upload-{len(files)}"
            _save(value.file, files[name])
    return Sent(fields=fields, files=files, is_form=True)


def _save(source: BinaryIO, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(source, target)


def parse_object(data: bytes | str) -> dict[str, object]:
    """A JSON object. Raises BodyError."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise BodyError(f"the body is {shown(value)}; it must be a JSON object")
    return value


def parse_json(data: bytes | str) -> object:
    """Any JSON value. Raises BodyError."""
    try:
        value = json.loads(data, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise BodyError(f"the JSON is nested too deeply; {MAX_DEPTH} levels are taken") from None
    except ValueError as error:
        if isinstance(error, BodyError):
            raise
        raise BodyError(f"the body is no JSON: {shown(error, 120)}") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))]
        level = [each for values in inner for each in values]
    if level:
        raise BodyError(f"the JSON is nested too deeply; {MAX_DEPTH} levels are taken")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        left = dict.fromkeys(found)
        twice = next(name for name, _ in pairs if left.pop(name, name) is not None)
        raise BodyError(f"the field {shown(twice)} comes twice; send it once")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BodyError(f"the JSON has the number {shown(text)}; numbers must be finite")
    return value
