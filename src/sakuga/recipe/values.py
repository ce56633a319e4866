"""The recipe: everything that changes the picture of a render beyond rounding, and the key made of it.

Recipes are frozen, compare by value and travel between processes. They hold contents as sha256, never paths, and know
nothing of plans (devices, parallel degrees), priorities or owners: two recipes with one key are one video.

Run its tests: pytest tests/unit/test_recipe.py
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sakuga.errors import RecipeError, did_you_mean, shown
from sakuga.recipe.limits import (
    LIMITS,
    MAX_LORAS,
    OPTIONAL_NUMBERS,
    check_choice,
    check_number,
    check_prompt,
    check_sha256,
    check_slug,
    check_video_size,
)

NUMERICS_VERSION = 3  # raise it when a change of the code changes pixels of an unchanged recipe
IMAGE_ROLES = ("input_image", "end_image", "reference_image")
VIDEO_ROLES = ("input_video", "control_video", "vace_video", "vace_mask")
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8-dynamic", "fp8", "fp8-dynamic")
"""What they mean is said in `sakuga.wan.precision`."""
EXPERTS = ("high", "low")
CAMERA_DIRECTIONS = ("Left", "Right", "Up", "Down", "LeftUp", "LeftDown", "RightUp", "RightDown")
CAMERA_SPEED = 1 / 54
"""Of a camera_direction without a camera_speed: the pipeline's default."""
ATTENTIONS = ("auto", "sdpa", "cudnn", "flash2", "flash3", "flash4", "xformers", "sage")
"""Whether one runs on a machine is `sakuga.wan.attention`'s to say."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """A picture that conditions the video, by content."""

    role: str
    """One of `IMAGE_ROLES`."""
    sha256: str
    """Of the decoded RGB pixels and their size: `sakuga.media.image_sha256`."""

    def __post_init__(self) -> None:
        check_choice("role", self.role, IMAGE_ROLES)
        check_sha256("sha256", self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRef:
    """A video that conditions the video, by content."""

    role: str
    """One of `VIDEO_ROLES`."""
    sha256: str
    """Of the decoded RGB frames and their size: `sakuga.media.video_sha256`."""

    def __post_init__(self) -> None:
        check_choice("role", self.role, VIDEO_ROLES)
        check_sha256("sha256", self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRef:
    """A LoRA and how strongly it is fused."""

    sha256: str
    """Of the file."""
    weight: float = 1.0
    expert: str | None = None
    """"high" or "low": the only expert of two that it is for; None: all."""

    def __post_init__(self) -> None:
        check_sha256("sha256", self.sha256)
        object.__setattr__(self, "weight", check_number("weight", self.weight))
        check_expert(self.expert)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCache:
    """A rule by which steps reuse what earlier ones computed instead of running the DiT's blocks."""

    kind: str
    """A name of `wan.caching.KINDS`."""
    threshold_rel_l1: float
    """Relative L1 change, as the rule predicts it, up to which a step is skipped."""
    refresh_every: int | None = None
    """Every so many steps the rule starts anew, and a snapshot there needs none of its memory."""

    def __post_init__(self) -> None:
        check_slug("step_cache.kind", self.kind)
        threshold = self.threshold_rel_l1
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold <= 10:
            raise RecipeError(f"step_cache.threshold_rel_l1 is {shown(threshold)}; it must be above 0, at most 10")
        object.__setattr__(self, "threshold_rel_l1", float(threshold))
        every = self.refresh_every
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or not 1 <= every <= 1000):
            raise RecipeError(f"step_cache.refresh_every is {shown(every)}; it must be a whole number from 1 to 1000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Tiles of the VAE, in latent pixels (8 pixels of the picture each); overlapping parts are blended."""

    tile_height: int = 30
    tile_width: int = 52
    stride_height: int = 15
    stride_width: int = 26

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
                raise RecipeError(f"tiling.{field.name} is {shown(value)}; it must be a whole number from 1 to 1024")
        if self.stride_height > self.tile_height or self.stride_width > self.tile_width:
            raise RecipeError("a stride of tiling is larger than its tile, which would leave gaps; make it smaller")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRecipe:
    """All that decides a video. Raises RecipeError, GeometryError or PromptError for values no model can take."""

    model: str
    """Name of a model card."""
    weights_sha256: str
    """Of the weights of the card as loaded."""
    prompt: str
    negative_prompt: str = ""
    width: int = 128
    """Pixels."""
    height: int = 128
    """Pixels."""
    num_frames: int = 33
    fps: int = 15
    num_inference_steps: int = 20
    guidance_scale: float = 5.0
    """1 runs the model once a step, without the negative prompt."""
    guidance_scale_2: float | None = None
    """For the low-noise expert of a card with two; None: as guidance_scale."""
    boundary_ratio: float | None = None
    """Fraction of the noise schedule at which the low-noise expert takes over; None: the card's."""
    flow_shift: float = 5.0
    seed: int
    """0 to 2**63 - 1."""
    denoising_strength: float = 1.0
    """Below 1 the render starts from the input video instead of pure noise."""
    camera_direction: str | None = None
    """One of `CAMERA_DIRECTIONS`: where the camera goes, away from the input image."""
    camera_speed: float | None = None
    """How far from frame to frame; None without a direction, and `CAMERA_SPEED` is filled in with one."""
    motion_bucket_id: int | None = None
    """0 (slow) to 100 (fast), for models with speed control; None leaves the speed to the model."""
    images: tuple[ImageRef, ...] = ()
    videos: tuple[VideoRef, ...] = ()
    loras: tuple[LoraRef, ...] = ()
    """In the order in which they are fused: floating-point sums depend on it."""
    step_cache: StepCache | None = None
    precision: str = "fp32"
    attention: str = "auto"
    """A kernel's name; `auto` chooses among exact kernels only."""
    tiling: Tiling | None = None
    """None: the VAE works on the whole picture."""
    numerics_version: int = NUMERICS_VERSION

    def __post_init__(self) -> None:
        check_slug("model", self.model)
        check_sha256("weights_sha256", self.weights_sha256)
        check_prompt("prompt", self.prompt)
        check_prompt("negative_prompt", self.negative_prompt, may_be_empty=True)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in LIMITS and not (value is None and field.name in OPTIONAL_NUMBERS):
                object.__setattr__(self, field.name, check_number(field.name, value))
        check_video_size(self.width, self.height, self.num_frames)
        object.__setattr__(self, "camera_speed", check_camera(self.camera_direction, self.camera_speed))
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("attention", self.attention, ATTENTIONS)
        check_unique("images", [ref.role for ref in self.images if ref.role != "reference_image"])
        check_unique("videos", [ref.role for ref in self.videos])
        check_unique("loras", [ref.sha256 for ref in self.loras])
        if len(self.loras) > MAX_LORAS:
            raise RecipeError(f"loras names {len(self.loras)} LoRAs; at most {MAX_LORAS} can be fused")

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON; `from_dict` is the way back."""
        return json.loads(self.canonical_json())

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "RenderRecipe":
        """The recipe of `as_dict`. Raises RecipeError for unknown or missing fields and values out of range."""
        plain = dict(values)
        for field, ref_type in (("images", ImageRef), ("videos", VideoRef), ("loras", LoraRef)):
            if field in plain:
                plain[field] = _refs(field, ref_type, plain[field])
        for field, value_type in (("step_cache", StepCache), ("tiling", Tiling)):
            if plain.get(field) is not None:
                plain[field] = _build(field, value_type, plain[field])
        return _build("recipe", cls, plain)

    def canonical_json(self) -> str:
        """ASCII, sorted keys, no spaces, every field present: equal recipes give equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def render_key(self) -> str:
        """sha256 of the canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json().encode("ascii")).hexdigest()


def check_expert(value: object) -> str | None:
    """None for both experts, or the one of high or low noise."""
    return None if value is None else check_choice("loras.expert", value, EXPERTS)


def check_camera(direction: object, speed: float | None) -> float | None:
    """The speed of a camera that goes in a direction, the default filled in: both spellings are one key."""
    if direction is None:
        if speed is not None:
            raise RecipeError("camera_speed says how fast the camera goes; give a camera_direction too")
        return None
    check_choice("camera_direction", direction, CAMERA_DIRECTIONS)
    return CAMERA_SPEED if speed is None else speed


def check_unique(field: str, names: Iterable[str]) -> None:
    """Refuses a name that comes twice."""
    names = list(names)
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{field} has {shown(name)} twice; keep one of them")


def _refs(field: str, ref_type: type[Value], values: object) -> tuple[Value, ...]:
    if not isinstance(values, (list, tuple)):
        raise RecipeError(f"{field} is {shown(values)}; it must be a list")
    return tuple(_build(f"{field}[{place}]", ref_type, value) for place, value in enumerate(values))


def _build(name: str, value_type: type[Value], values: object) -> Value:
    """A frozen dataclass from a mapping that has exactly its fields, with names in the errors."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{name} is {shown(values)}; it must be an object")
    fields = {field.name: field for field in dataclasses.fields(value_type)}  # ty: ignore[invalid-argument-type]
    for key in values:
        if key not in fields:
            raise RecipeError(f"{name} has no field {shown(key)}{did_you_mean(str(key), fields)}")
    missing = [key for key, field in fields.items() if key not in values and field.default is dataclasses.MISSING]
    if missing:
        raise RecipeError(f"{name} lacks the field {missing[0]!r}; add it")
    return value_type(**values)
