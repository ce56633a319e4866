"""From what a user asked for to a recipe: fill in the card's defaults, read the files, hash what they hold.

Files of weights are found and hashed, not loaded, and the request is checked against the card first, so a bad request
costs no model work.     Run: pytest tests/unit/test_engine_resolve.py
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from sakuga.engine.state import RenderInputs
from sakuga.engine.task import check_task
from sakuga.errors import LoraError, RecipeError, WeightsError
from sakuga.media import image_sha256, load_image, read_video, video_info, video_sha256
from sakuga.recipe import (
    IMAGE_ROLES,
    MAX_SEED,
    VIDEO_ROLES,
    ImageRef,
    LoraRef,
    LoraRequest,
    RecipeRequest,
    RenderRecipe,
    VideoRef,
)
from sakuga.settings import from_environment
from sakuga.wan.cards import ModelCard
from sakuga.wan.loading import WeightSet, locate
from sakuga.wan.lora import embedded_lora
from sakuga.wan.passport import LoraPassport, read_passport
from sakuga.wan.weights import file_sha256

Value = TypeVar("Value")


def resolve(
    request: RecipeRequest, card: ModelCard, base_dir: Path, weights: str | Path | None = None
) -> tuple[RenderRecipe, RenderInputs, tuple[Path, ...]]:
    """The recipe of a request, the contents that it names by hash, and the paths of its LoRAs.

    Relative paths begin at `base_dir`; `weights` as in `LocalEngine.load`. A missing seed is drawn here. Raises
    GeometryError, ModelError, RecipeError, ImageError, VideoError, LoraError or WeightsError.
    """
    bare = bare_recipe(request, card)
    check_task(bare, card)
    notes: list[str] = []
    images = {
        role: load_image(base_dir / path, tell=lambda text, role=role: notes.append(f"{role}: {text}"))
        for role in IMAGE_ROLES
        if (path := getattr(request, role))
    }
    videos = {role: read_video(base_dir / path) for role in VIDEO_ROLES if (path := getattr(request, role))}
    found = located(card, weights)
    if request.weights_sha256 not in (None, found.sha256):
        raise WeightsError(
            f"the weights of {card.name} are {found.sha256[:12]}, not {str(request.weights_sha256)[:12]} as asked; "
            "give the right --weights or leave weights_sha256 out"
        )
    lora_paths = tuple(lora_file(lora, card, found.lora_dir, base_dir) for lora in request.loras)
    passports = [read_passport(path) for path in lora_paths]
    request, more_notes = _with_schedule_of_loras(request, lora_paths, passports, found)
    notes += more_notes
    recipe = _recipe(
        request,
        card,
        weights_sha256=found.sha256,
        seed=bare.seed,
        images=tuple(ImageRef(role=role, sha256=image_sha256(image)) for role, image in images.items()),
        videos=tuple(VideoRef(role=role, sha256=video_sha256(video)) for role, video in videos.items()),
        loras=tuple(
            LoraRef(
                sha256=_lora_sha256(lora, path, found), weight=lora.weight, expert=_or(lora.expert, passport.expert)
            )
            for lora, path, passport in zip(request.loras, lora_paths, passports, strict=True)
        ),
    )
    check_task(recipe, card)
    for role in videos:
        notes += _fps_note(role, video_info(base_dir / getattr(request, role)).fps, recipe.fps)
    inputs = RenderInputs(images=images, videos=videos, lora_paths=lora_paths, notes=tuple(notes))
    return recipe, inputs, lora_paths


def _fps_note(role: str, fps: float, wanted: int) -> list[str]:
    if abs(fps - wanted) < 0.05:  # containers round: 15.02
        return []
    return [
        f"{role} plays at {fps:g} fps, the result at {wanted}: its frames are taken one by one, so its speed changes"
    ]


def located(card: ModelCard, weights: str | Path | None = None) -> WeightSet:
    """The card's files, found and hashed once in a process."""
    return _located(card, None if weights is None else str(weights))


@lru_cache(maxsize=16)
def _located(card: ModelCard, weights: str | None) -> WeightSet:
    settings = from_environment()
    return locate(card, weights, cache_dir=settings.cache_dir, endpoint_url=settings.s3_endpoint_url)


def _recipe(
    request: RecipeRequest,
    card: ModelCard,
    *,
    weights_sha256: str,
    seed: int | None = None,
    images: tuple[ImageRef, ...] = (),
    videos: tuple[VideoRef, ...] = (),
    loras: tuple[LoraRef, ...] = (),
) -> RenderRecipe:
    """The request with the card's defaults in place of what it leaves open."""
    # One guidance given is meant for both experts; only without any the card's pair is taken.
    guidance_2 = request.guidance_scale_2
    if request.guidance_scale is None and guidance_2 is None:
        guidance_2 = card.guidance_scale_2
    seed = request.seed if seed is None else seed
    return RenderRecipe(
        model=card.name,
        weights_sha256=weights_sha256,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=_or(request.width, card.width),
        height=_or(request.height, card.height),
        num_frames=_or(request.num_frames, card.num_frames),
        fps=_or(request.fps, card.fps),
        num_inference_steps=_or(request.num_inference_steps, card.num_inference_steps),
        guidance_scale=_or(request.guidance_scale, card.guidance_scale),
        guidance_scale_2=guidance_2,
        boundary_ratio=_or(request.boundary_ratio, card.boundary_ratio),
        flow_shift=_or(request.flow_shift, card.flow_shift),
        seed=secrets.randbelow(MAX_SEED + 1) if seed is None else seed,
        denoising_strength=_or(request.denoising_strength, 1.0),
        camera_direction=request.camera_direction,
        camera_speed=request.camera_speed,
        motion_bucket_id=request.motion_bucket_id,
        images=images,
        videos=videos,
        loras=loras,
        step_cache=request.step_cache,
        precision=_or(request.precision, card.precision),
        attention=request.attention,
        tiling=request.tiling,
    )


def _with_schedule_of_loras(
    request: RecipeRequest, paths: Sequence[Path], passports: Sequence[LoraPassport], weights: WeightSet
) -> tuple[RecipeRequest, list[str]]:
    """Steps, guidance and shift that an acceleration LoRA was distilled for, where the request leaves them open.

    Raises RecipeError when two of them ask for different schedules. The notes say what was taken from where, and which
    LoRA was trained on other weights.
    """
    notes, taken = [], {}
    fast = [(path, passport) for path, passport in zip(paths, passports, strict=True) if passport.is_acceleration]
    for path, passport in fast:
        # A distilled step has guidance inside.
        wanted = {
            "num_inference_steps": passport.num_inference_steps,
            "guidance_scale": _or(passport.guidance_scale, 1.0),
            "flow_shift": passport.flow_shift,
        }
        for name, value in wanted.items():
            if value is None or getattr(request, name) is not None:
                continue
            if taken.setdefault(name, value) != value:
                raise RecipeError(
                    f"{path.name} wants {name} {value:g} and another LoRA {taken[name]:g}; give {name} yourself"
                )
            notes.append(f"{name} is {value:g}, as LoRA {path.name} was distilled for")
    for path, passport in zip(paths, passports, strict=True):
        if passport.base_sha256 not in (None, weights.sha256):
            notes.append(f"LoRA {path.name} was trained on other weights ({passport.base_sha256[:12]})")
    return request.model_copy(update=taken), notes


def bare_recipe(request: RecipeRequest, card: ModelCard) -> RenderRecipe:
    """The recipe without its LoRAs, and with the roles of its files but not their hashes: enough to check the task
    before reading them."""
    nothing = "0" * 64
    return replace(
        _recipe(request, card, weights_sha256=nothing),
        images=tuple(ImageRef(role=role, sha256=nothing) for role in IMAGE_ROLES if getattr(request, role)),
        videos=tuple(VideoRef(role=role, sha256=nothing) for role in VIDEO_ROLES if getattr(request, role)),
    )


def lora_file(lora: LoraRequest, card: ModelCard, lora_dir: Path | None, base_dir: Path) -> Path:
    """Where a LoRA lies; `lora_dir` has those of the model. Raises ModelError or LoraError when it is not there."""
    if lora.name is not None:
        path = embedded_lora(lora.name, card.name, lora_dir, card.loras)
    else:
        path = base_dir / str(lora.path)
    if not path.is_file():
        raise LoraError(f"LoRA {path} does not exist; check the path")
    return path


def _lora_sha256(lora: LoraRequest, path: Path, weights: WeightSet) -> str:
    """Of the file; one that comes with the package must be the file that its card.json knows."""
    sha256 = file_sha256(path)
    if lora.name is not None and weights.lora_sha256 is not None and sha256 != weights.lora_sha256.get(path.name):
        raise LoraError(f"LoRA {path} is damaged: its sha256 is not that of card.json; install the package again")
    return sha256


def _or(given: Value | None, default: Value) -> Value:
    return default if given is None else given
