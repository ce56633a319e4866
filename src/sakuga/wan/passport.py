"""What a LoRA says of itself: the base it was made for, its expert, the schedule it was distilled for, its words.

One JSON object under `sakuga.passport` in the file's metadata. Files of others have none, and everything in it is
optional; what is there must be right, since renders take their defaults from it.

Run: pytest tests/unit/test_passport.py
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sakuga.errors import LoraError, RecipeError, shown
from sakuga.recipe.limits import check_number
from sakuga.recipe.values import check_expert

KEY = "sakuga.passport"
_NUMBERS = ("num_inference_steps", "guidance_scale", "flow_shift")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPassport:
    """Raises LoraError for values that no recipe can take."""

    base_sha256: str | None = None
    """`weights_sha256` of the base it was trained on."""
    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    """Layers that it changes, as training named them."""
    expert: str | None = None
    """"high" or "low" noise of a model with two; None: both."""
    num_inference_steps: int | None = None
    """Of the schedule it was distilled for; such a LoRA wants no guidance unless `guidance_scale` says so."""
    guidance_scale: float | None = None
    flow_shift: float | None = None
    trigger_words: tuple[str, ...] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What was measured on held-out samples, by name."""

    def __post_init__(self) -> None:
        try:
            check_expert(self.expert)
            for name in _NUMBERS:
                value = getattr(self, name)
                if value is not None:
                    object.__setattr__(self, name, check_number(name, value))
        except RecipeError as error:
            raise LoraError(f"a LoRA's passport: {error.message}") from error

    @property
    def is_acceleration(self) -> bool:
        return self.num_inference_steps is not None

    def to_metadata(self) -> dict[str, str]:
        """For `save_file`; fields that are not set are left out."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, (), {})}
        return {KEY: json.dumps(fields, sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "LoraPassport":
        """An empty passport where there is none. Raises LoraError when it cannot be read."""
        try:
            fields = json.loads(metadata.get(KEY, "{}"))
            known = {field.name for field in dataclasses.fields(cls)}
            unknown = sorted(set(fields) - known)
            if unknown:
                raise LoraError(
                    f"a LoRA's passport has the unknown field {shown(unknown[0])}; a newer Sakuga may read it"
                )
            for name in ("targets", "trigger_words"):
                fields[name] = tuple(fields.get(name, ()))
            return cls(**fields)
        except (ValueError, TypeError, AttributeError) as error:
            if isinstance(error, LoraError):
                raise
            raise LoraError(f"a LoRA's passport cannot be read ({error}); export it again") from error


def read_passport(path: Path) -> LoraPassport:
    """Of a file, without its tensors. Raises LoraError."""
    try:
        with safe_open(path, framework="pt") as file:
            return LoraPassport.from_metadata(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise LoraError(f"LoRA {path} is damaged or no safetensors file ({error}); copy it again") from error
    except LoraError as error:
        raise LoraError(f"LoRA {path}: {error.message}") from error
