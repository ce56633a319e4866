"""A speed profile: a named choice of how to render one model at one size, with the measurement that it rests on.

It is made by `sakuga promote`, kept by the farm's registry in versions that never change, and named by requests.
Nothing of a picture is in it, only how it is computed.     Run: pytest tests/unit/test_tuning_profiles.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sakuga.errors import InputError, ProfileError, did_you_mean, shown
from sakuga.recipe.limits import check_slug
from sakuga.recipe.request import parse_request
from sakuga.tuning.figures import Bar, bars_as_dict, parse_bars

PROFILE_FIELDS = (
    "num_inference_steps", "guidance_scale", "guidance_scale_2", "boundary_ratio", "flow_shift", "step_cache",
    "precision", "attention", "tiling", "loras",
)  # fmt: skip
"""Fields of a request that a profile may choose. `loras` are those that it was measured with; a request's own come
first, and those of the profile that it does not name are added."""
TIERS = ("draft", "standard")
"""What a profile is good for. "best" is the reference itself, without a profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedProfile:
    """Raises ProfileError for what no farm can use."""

    name: str
    model: str
    width: int
    height: int
    num_frames: int
    fields: Mapping[str, object]
    """Of `PROFILE_FIELDS`."""
    reference: Mapping[str, object]
    """The same fields of the reference render, which audits render again."""
    bars: tuple[Bar, ...]
    """Of the gate that it passed; an audit holds it to them."""
    measured: Mapping[str, float]
    """Means over the gate set, with `seconds`, `reference_seconds` and `speedup`."""
    tier: str = "standard"
    plan: str = ""
    """Parallel degrees and memory plan of the engine that measured; the farm's own decide how its lanes run."""
    canary_share: float = 0.1
    """Of the requests that name the profile, until its first audits have passed."""
    audit_share: float = 0.05
    """Of its renders that are rendered again as the reference, when lanes are idle."""
    source: Mapping[str, str] = field(default_factory=dict)
    """Where it comes from: sweep, trial, gate."""

    def __post_init__(self) -> None:
        check_slug("name", self.name)
        check_slug("model", self.model)
        for fields in (self.fields, self.reference):
            check_fields(fields)
        for name in ("width", "height", "num_frames"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ProfileError(f"{name} of profile {shown(self.name)} is {shown(value)}; it must be a whole number")
        if self.tier not in TIERS:
            raise ProfileError(
                f"tier is {shown(self.tier)}{did_you_mean(str(self.tier), TIERS)}; it is draft or standard"
            )
        for name in ("canary_share", "audit_share"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise ProfileError(f"{name} is {shown(share)}; it must be from 0 to 1")
        if not self.canary_share:
            raise ProfileError("canary_share is 0, so no request would ever try the profile; give a share above 0")
        for name, value in self.measured.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ProfileError(f"measured {shown(name)} is {shown(value)}; it must be a finite number")

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, height, frames."""
        return self.width, self.height, self.num_frames

    @property
    def content_sha256(self) -> str:
        """Of what it chooses, without name, measurement and shares: the same choice has the same hash."""
        chosen = {
            "model": self.model,
            "size": self.size,
            "fields": dict(self.fields),
            "reference": dict(self.reference),
        }
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON; `from_dict` is the way back."""
        plain = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return plain | {
            "fields": dict(self.fields),
            "reference": dict(self.reference),
            "bars": bars_as_dict(self.bars),
            "measured": dict(self.measured),
            "source": dict(self.source),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> SpeedProfile:
        """Raises ProfileError or GateError for a field that is unknown, missing or of the wrong type."""
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ProfileError(f"a profile has no field {shown(name)}{did_you_mean(str(name), known)}")
        required = [name for name, entry in known.items() if _is_required(entry)]
        lacking = [name for name in required if name not in values]
        if lacking:
            raise ProfileError(f"the profile lacks {lacking[0]}; add it")
        for name in ("fields", "reference", "measured", "source"):
            if not isinstance(values.get(name, {}), Mapping):
                raise ProfileError(f"{name} of the profile is {shown(values[name])}; it must be an object")
        return cls(**{**values, "bars": parse_bars(values["bars"])})  # ty: ignore[invalid-argument-type]


def check_fields(fields: Mapping[str, object]) -> None:
    """Raises ProfileError for fields that a profile cannot choose, or values that no recipe takes."""
    for name in fields:
        if name not in PROFILE_FIELDS:
            raise ProfileError(f"a profile does not choose {shown(name)}{did_you_mean(str(name), PROFILE_FIELDS)}")
    try:
        parse_request({"prompt": "a dancer", **fields})
    except InputError as error:
        raise ProfileError(f"fields of the profile: {error.message}") from error


def _is_required(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
