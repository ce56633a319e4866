"""From a wish to a job: the recipe with its hashes, what it costs, whether it fits.

Everything that can be wrong with a request is found here, before the store hears of it and long before a lane does.

Run: pytest tests/unit/test_api_preparing.py
"""

import base64
import binascii
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sakuga.api.choosing import choose, filled, wanted_of
from sakuga.api.deps import ApiDeps, ServedModel
from sakuga.api.fields import Wish, seconds_text
from sakuga.api.lora_files import named, with_files
from sakuga.api.uploads import safe_image
from sakuga.api.wire import Asked
from sakuga.cost import Estimate
from sakuga.cost.model import CHARS_PER_TOKEN
from sakuga.engine.resolve import located, resolve
from sakuga.errors import InputError, NotFoundError, ProfileError, RecipeError, shown
from sakuga.jobstore import AUDIT_TENANT, LoraEntry, NewAudit, NewJob
from sakuga.jobstore.ids import new_id
from sakuga.media import read_video
from sakuga.recipe import IMAGE_ROLES, MAX_SEED, LoraRequest, RecipeRequest, RenderRecipe, parse_request
from sakuga.recipe.limits import LIMITS
from sakuga.tuning.audit import reference_job
from sakuga.tuning.choice import Choice, is_audited
from sakuga.wan.cards import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A recipe that lanes of this farm can take."""

    recipe: RenderRecipe
    loras: Sequence[LoraEntry]
    """Of the registry."""
    estimate: Estimate
    notes: Sequence[str]

    def job(self, tenant: str, stored: Mapping[str, str]) -> NewJob:
        """That renders it; `stored` are the names of its files in storage."""
        return NewJob(
            tenant=tenant,
            render_key=self.recipe.render_key,
            model=self.recipe.model,
            recipe=self.recipe.as_dict(),
            request={},
            inputs={**stored, **{f"lora:{entry.sha256}": entry.object_name for entry in self.loras}},
            num_steps=self.recipe.num_inference_steps,
            work_s=self.estimate.total_s,
            step_s=self.estimate.step_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """Makes recipes of one request and its files."""

    deps: ApiDeps
    tenant: str
    served: ServedModel
    files: Mapping[str, Path]
    """By role, safe to open."""
    folder: Path

    def __call__(self, request: RecipeRequest, choice: Choice) -> Priced:
        """The recipe with the chosen fields where the request leaves them open, and what it costs."""
        given = filled(request, choice)
        loras, entries = self._loras(given.loras, len(request.loras), choice)
        whole = given.model_copy(update={"loras": loras} | {role: str(path) for role, path in self.files.items()})
        places = {str(path): role for role, path in self.files.items()}
        pairs = zip(loras, given.loras, strict=True)
        places |= {str(lora.path): str(asked.name) for lora, asked in pairs if lora.path}
        with named(places):
            recipe, inputs, _ = resolve(whole, self.served.card, self.folder, self.served.weights)
        estimate, notes = self.served.admit(recipe)
        return Priced(recipe=recipe, loras=entries, estimate=estimate, notes=(*inputs.notes, *notes))

    def _loras(
        self, loras: Sequence[LoraRequest], num_own: int, choice: Choice
    ) -> tuple[tuple[LoraRequest, ...], Sequence[LoraEntry]]:
        """The request's own by its tenant, those of a profile by the tenant that promoted it."""
        card = self.served.card
        own, entries = with_files(self.deps, self.tenant, card, loras[:num_own])
        try:
            others, more = with_files(self.deps, choice.owner or self.tenant, card, loras[num_own:])
        except NotFoundError as error:
            raise ProfileError(
                f"profile {shown(choice.name)} names a LoRA that was deleted; who runs this farm can retire it"
            ) from error
        return (*own, *others), (*entries, *more)


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
    request, cut_frames = _request(served, wish)
    if request.seed is None:  # here, as a draw for a canary goes by it
        seed = secrets.randbelow(MAX_SEED + 1) if default_seed is None else default_seed
        request = request.model_copy(update={"seed": seed})
    if wish.webhook_url is not None:
        deps.guard.check(wish.webhook_url, label="webhook_url")
    notes: list[str] = []
    files = {role: _safe(deps, wish, role, folder, notes) for role in (*wish.files, *wish.addresses)}
    render = Renderer(deps=deps, tenant=tenant, served=served, files=files, folder=folder)
    choice = choose(deps, served, wish, request, lambda: render(request, Choice()).estimate.total_s)
    priced = render(request, choice)
    recipe = priced.recipe
    notes += [*choice.notes, *priced.notes, *_prompt_notes(recipe, served.card)]
    stored = {role: f"{tenant}/uploads/{new_id('upload')}/{path.name}" for role, path in files.items()}
    asked = Asked(
        fields=request.model_dump(mode="json", exclude_unset=True) | {"model": recipe.model, "seed": recipe.seed},
        prompt=recipe.prompt,
        size=f"{recipe.width}x{recipe.height}",
        seconds=seconds_text(wish.seconds or recipe.num_frames / recipe.fps),
        fps=recipe.fps,
        cut_frames=cut_frames,
        profile=choice.name,
        profile_version=None if choice.offer is None else choice.offer.version,
        quality=wish.quality,
        notes=tuple(notes),
        row=row,
    )
    job = replace(
        priced.job(tenant, stored),
        request=asked.as_dict(),
        priority=wish.priority,
        deadline_at=None if wish.deadline_s is None else time.time() + wish.deadline_s,
        webhook_url=wish.webhook_url,
        remixed_from=remixed_from,
        audit=_audit(deps, render, request, choice, stored),
    )
    return Prepared(job=job, uploads={stored[role]: path for role, path in files.items()})


def _audit(
    deps: ApiDeps, render: Renderer, request: RecipeRequest, choice: Choice, stored: Mapping[str, str]
) -> NewAudit | None:
    """The wish to hold this render to its reference, for a share of those of a promoted profile."""
    offer = choice.offer
    if offer is None or not is_audited(choice, wanted_of(request, render.served, is_whole=False), deps.audit_share()):
        return None
    priced = render(request, replace(choice, fields=offer.profile.reference))
    return NewAudit(profile_id=offer.id, reference=asdict(reference_job(priced.job(AUDIT_TENANT, stored))))


def _request(served: ServedModel, wish: Wish) -> tuple[RecipeRequest, int | None]:
    """The checked fields, and how many frames of the render are shown if not all."""
    request = parse_request({**wish.recipe, "model": served.card.name})
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
