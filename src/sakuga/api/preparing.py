"""From a wish to a job: the recipe with its hashes, what it costs, whether it fits.

Everything that can be wrong with a request is found here, before the store hears of it and long before a lane does.

Run: pytest tests/unit/test_api_preparing.py
"""

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sakuga.api.deps import ApiDeps, ServedModel
from sakuga.api.fields import Wish, seconds_text
from sakuga.api.lora_files import named, with_files
from sakuga.api.uploads import safe_image
from sakuga.api.wire import Asked
from sakuga.cost.model import CHARS_PER_TOKEN
from sakuga.engine.resolve import located, resolve
from sakuga.errors import InputError, RecipeError, did_you_mean, shown
from sakuga.jobstore import NewJob
from sakuga.jobstore.ids import new_id
from sakuga.media import read_video
from sakuga.recipe import IMAGE_ROLES, RecipeRequest, RenderRecipe, parse_request
from sakuga.recipe.limits import LIMITS
from sakuga.wan.cards import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job that can be submitted once its uploads are in storage."""

    job: NewJob
    uploads: Mapping[str, Path]
    """By the name that each will have in storage."""


def prepare(
    deps: ApiDeps,
    tenant: str,
    wish: Wish,
    folder: Path,
    *,
    default_seed: int | None = None,
    remixed_from: str | None = None,
    row: int | None = None,
) -> Prepared:
    """Check and price a wish; `folder` takes what is made of its files.

    Raises InputError, LoraError or MemoryLimitError for what its sender can mend.
    """
    served = deps.served(wish.recipe.get("model"))
    request, cut_frames = _request(deps, served, wish)
    if wish.webhook_url is not None:
        deps.guard.check(wish.webhook_url, label="webhook_url")
    notes: list[str] = []
    loras, entries = with_files(deps, tenant, served.card, request.loras)
    files = {role: _safe(deps, wish, role, folder, notes) for role in (*wish.files, *wish.addresses)}
    filled = request.model_copy(update={role: str(path) for role, path in files.items()} | {"loras": loras})
    if filled.seed is None:
        filled = filled.model_copy(update={"seed": default_seed})
    places = {str(path): role for role, path in files.items()}
    places |= {str(lora.path): str(given.name) for lora, given in zip(loras, request.loras, strict=True) if lora.path}
    with named(places):
        recipe, inputs, _ = resolve(filled, served.card, folder, served.weights)
    estimate, more_notes = served.admit(recipe)
    notes += [*inputs.notes, *more_notes, *_prompt_notes(recipe, served.card)]
    stored = {role: f"{tenant}/uploads/{new_id('upload')}/{path.name}" for role, path in files.items()}
    asked = Asked(
        fields=request.model_dump(mode="json", exclude_unset=True) | {"model": recipe.model, "seed": recipe.seed},
        prompt=recipe.prompt,
        size=f"{recipe.width}x{recipe.height}",
        seconds=seconds_text(wish.seconds or recipe.num_frames / recipe.fps),
        fps=recipe.fps,
        cut_frames=cut_frames,
        profile=wish.profile,
        notes=tuple(notes),
        row=row,
    )
    job = NewJob(
        tenant=tenant,
        render_key=recipe.render_key,
        model=recipe.model,
        recipe=recipe.as_dict(),
        request=asked.as_dict(),
        inputs=stored | {f"lora:{entry.sha256}": entry.object_name for entry in entries},
        num_steps=recipe.num_inference_steps,
        work_s=estimate.total_s,
        step_s=estimate.step_s,
        priority=wish.priority,
        deadline_at=None if wish.deadline_s is None else time.time() + wish.deadline_s,
        webhook_url=wish.webhook_url,
        remixed_from=remixed_from,
    )
    return Prepared(job=job, uploads={stored[role]: path for role, path in files.items()})


def _request(deps: ApiDeps, served: ServedModel, wish: Wish) -> tuple[RecipeRequest, int | None]:
    """The checked fields, and how many frames of the render are shown if not all."""
    request = parse_request({**wish.recipe, "model": served.card.name}, _profile(deps, served, wish.profile))
    weights = request.weights_sha256
    if weights is not None and weights != located(served.card, served.weights).sha256:
        raise RecipeError(f"weights_sha256 is {shown(weights)}, and this farm has other weights of {served.card.name}")
    if wish.seconds is None:
        return request, None
    fps = request.fps or served.card.fps
    wanted, most = wish.seconds * fps, LIMITS["num_frames"].high
    if wanted > most:
        raise RecipeError(f"seconds is {seconds_text(wish.seconds)}; at {fps} fps at most {int(most // fps)} are taken")
    num_frames, cut_frames = served.card.nearest_frames(round(wanted)), max(1, int(wanted + 1e-6))
    request = request.model_copy(update={"num_frames": num_frames})
    return request, cut_frames if cut_frames < num_frames else None


def _profile(deps: ApiDeps, served: ServedModel, name: str | None) -> Mapping[str, object]:
    if name is None:
        return {}
    promoted = {entry.name: entry.profile["fields"] for entry in deps.stores.profiles.current(served.card.name)}
    known: dict[str, Mapping[str, object]] = {**served.profiles, **promoted}  # ty: ignore[invalid-assignment]
    if name not in known:
        hint = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
        raise RecipeError(f"profile {shown(name)} is none of {served.card.name}{hint}")
    return known[name]


def _safe(deps: ApiDeps, wish: Wish, role: str, folder: Path, notes: list[str]) -> Path:
    """A file of the request that can be opened: a picture decoded elsewhere and written anew, a video within limits."""
    source = wish.files.get(role)
    if source is None:
        source = folder / f"{role}.given"
        _bring(deps, wish.addresses[role], role, source)
    if role in IMAGE_ROLES:
        return safe_image(
            source, out=folder / f"{role}.png", label=role, tell=lambda text: notes.append(f"{role}: {text}")
        )
    with named({str(source): role}):
        read_video(source, max_pixels=deps.settings.max_input_video_pixels)
    return source.rename(folder / f"{role}.mp4")


def _bring(deps: ApiDeps, address: str, role: str, path: Path) -> None:
    """What an address holds or leads to."""
    if address.startswith("data:"):
        head, _, text = address.partition(",")
        try:
            if not head.endswith(";base64"):
                raise InputError(f"{role} is a data: address without base64; write data:image/png;base64,…")
            path.write_bytes(base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise InputError(f"{role} is a data: address whose base64 is damaged ({error}); encode it again") from error
    elif not deps.settings.allow_image_url or role not in IMAGE_ROLES:
        raise InputError(f"{role} is an address, and this farm fetches nothing; send the file with the request")
    else:
        deps.guard.fetch_picture(address, path, label=role)


def _prompt_notes(recipe: RenderRecipe, card: ModelCard) -> Sequence[str]:
    notes = []
    if recipe.negative_prompt and recipe.guidance_scale <= 1:
        notes.append("negative_prompt has no effect without guidance; raise guidance_scale above 1")
    for name in ("prompt", "negative_prompt"):
        if len(getattr(recipe, name)) > CHARS_PER_TOKEN * card.tokenizer_max_tokens:
            limit = card.tokenizer_max_tokens
            notes.append(f"{name} probably has more than {limit} tokens; the rest has no effect")
    return notes
