"""Bodies that are read by hand, described for the OpenAPI document, from the rules that they are checked by.

Run: pytest tests/unit/test_api_openapi.py
"""

from collections.abc import Mapping

from sakuga.api.fields import FILE_FIELDS, MAX_DEADLINE_S, MAX_SECONDS, MAX_URL_CHARS, RECIPE_FIELDS, ROLES
from sakuga.jobstore import PRIORITIES
from sakuga.recipe import ATTENTIONS, CAMERA_DIRECTIONS, LIMITS, MAX_PROMPT_CHARS, PRECISIONS
from sakuga.recipe.limits import MAX_LORAS, SHA256_HEX, SLUG
from sakuga.tuning.choice import QUALITIES
from sakuga.tuning.profiles import TIERS

Schema = Mapping[str, object]
KINDS = {"form": "multipart/form-data", "json": "application/json", "lines": "application/jsonl"}
TEXT: Schema = {"type": "string"}
FILE: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
NAME: Schema = {"type": "string", "pattern": f"^{SLUG.pattern}$"}
DATA_URL: Schema = {"type": "string", "description": "A data: address in base64, or an https one where it is allowed"}
SPECIAL: Mapping[str, Schema] = {
    "prompt": {"type": "string", "minLength": 1, "maxLength": MAX_PROMPT_CHARS},
    "negative_prompt": {"type": "string", "maxLength": MAX_PROMPT_CHARS},
    "model": {**NAME, "description": "One of /v1/models; the first without it"},
    "weights_sha256": {"type": "string", "pattern": f"^{SHA256_HEX.pattern}$"},
    "attention": {"type": "string", "enum": list(ATTENTIONS)},
    "precision": {"type": "string", "enum": list(PRECISIONS)},
    "camera_direction": {"type": "string", "enum": list(CAMERA_DIRECTIONS)},
    "loras": {
        "type": "array",
        "maxItems": MAX_LORAS,
        "items": {"type": "string", "description": "An id of /v1/loras or a name of the model's; ID:WEIGHT[:EXPERT]"},
    },
    "step_cache": {"type": "string", "description": "KIND:THRESHOLD or KIND:THRESHOLD:REFRESH_EVERY"},
    "tiling": {"type": "object"},
    "size": {"type": "string", "pattern": r"^\d{1,6}x\d{1,6}$"},
    "seconds": {"type": "string", "description": f"Above 0, at most {MAX_SECONDS:.0f}; the nearest 4n+1 frames"},
    "profile": {**NAME, "description": "One of /v1/profiles"},
    "quality": {
        "type": "string",
        "enum": list(QUALITIES),
        "description": "Instead of a profile: the fastest that holds",
    },
    "priority": {"type": "string", "enum": list(PRIORITIES)},
    "deadline_s": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_S},
    "webhook_url": {"type": "string", "format": "uri", "maxLength": MAX_URL_CHARS},
    "extra_params": {"type": "string", "description": "A JSON object of further fields, for clients with flat forms"},
    "image_url": DATA_URL,
}


def _field(name: str) -> Schema:
    if name in LIMITS:
        limit = LIMITS[name]
        return {"type": "integer" if limit.whole else "number", "minimum": limit.low, "maximum": limit.high}
    return SPECIAL[name]


def _object(fields: Mapping[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def _body(**schemas: Schema) -> dict[str, object]:
    """A request body in some of its forms."""
    content = {KINDS[kind]: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


_FIELDS = {name: _field(name) for name in (*RECIPE_FIELDS, *(name for name in SPECIAL if name not in RECIPE_FIELDS))}
_REFERENCE = {"type": "object", "properties": {"image_url": DATA_URL}, "required": ["image_url"]}
CREATE_BODY = _body(
    form=_object(_FIELDS | dict.fromkeys(FILE_FIELDS, FILE), "prompt"),
    json=_object(_FIELDS | {"input_reference": _REFERENCE} | dict.fromkeys(ROLES, DATA_URL), "prompt"),
)
REMIX_BODY = _body(json=_object({"prompt": SPECIAL["prompt"]}, "prompt"))
LORA_BODY = _body(form=_object({"file": FILE, "name": NAME, "model": NAME}, "file"))
_OBJECT: Schema = {"type": "object"}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
PROFILE_BODY = _body(
    json=_object(
        {"name": NAME, "model": NAME, "tier": {"type": "string", "enum": list(TIERS)}, "plan": TEXT}
        | {name: _field(name) for name in ("width", "height", "num_frames")}
        | dict.fromkeys(("fields", "reference", "bars", "measured", "source"), _OBJECT)
        | {"canary_share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "audit_share": _SHARE},
        "name", "model", "width", "height", "num_frames", "fields", "reference", "bars", "measured",
    )
)  # fmt: skip
ROLLBACK_BODY = _body(
    json=_object({"faults": {"type": "array", "items": TEXT}, "figures": _OBJECT, "gate": TEXT}, "faults")
)
BATCH_BODY = _body(form=_object({"file": FILE}, "file"), lines=TEXT)
