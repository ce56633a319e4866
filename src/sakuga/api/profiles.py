"""`/v1/profiles`: what may be named in a request's `profile`; who runs the farm promotes, activates and retires.

A promotion is refused here for what no lane could render, since a request that gets the profile comes too late to hear
of it.     Run: pytest tests/unit/test_api_profiles.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from PIL import Image
from pydantic import BaseModel, JsonValue
from starlette.concurrency import run_in_threadpool

from sakuga.api.auth import ADMIN, READER, Admin
from sakuga.api.body import Sent, read_body
from sakuga.api.deps import ApiDeps, Deps
from sakuga.api.documents import ERRORS, Scratch
from sakuga.api.lora_files import named, with_files
from sakuga.api.schema import PROFILE_BODY, ROLLBACK_BODY
from sakuga.engine.resolve import resolve
from sakuga.errors import (
    InputError,
    LoraError,
    MemoryLimitError,
    ModelError,
    NotFoundError,
    ProfileError,
    RecipeError,
    did_you_mean,
    shown,
)
from sakuga.jobstore import AuditTally, ProfileEntry
from sakuga.media import write_mp4
from sakuga.recipe import parse_request
from sakuga.recipe.limits import SLUG
from sakuga.tuning.audit import AUDITED, audited_bars
from sakuga.tuning.profiles import SpeedProfile
from sakuga.wan.cards import ModelCard

router = APIRouter(prefix="/v1/profiles", tags=["profiles"], responses=ERRORS)
Name = Annotated[str, PathParameter(pattern=f"^{SLUG.pattern}$")]
PICTURES = {"i2v": ("input_image",), "flf2v": ("input_image", "end_image"), "camera": ("input_image",)}
"""What a render of each task cannot do without."""


class Audits(BaseModel):
    """How renders of a version compared with their references."""

    passed: int = 0
    failed: int = 0
    open: int = 0


class Size(BaseModel):
    """The only one that a profile is for."""

    width: int
    height: int
    num_frames: int


class Profile(BaseModel):
    """A version of a profile; without an id, fields that came with the model."""

    object: Literal["profile"] = "profile"
    id: str | None = None
    name: str
    model: str
    version: int | None = None
    state: Literal["canary", "active", "retired"] = "active"
    reason: str | None = None
    """Of its retirement: rolled_back, replaced or by_hand."""
    canary_share: float = 0.0
    size: Size | None = None
    tier: str | None = None
    fields: dict[str, JsonValue]
    reference: dict[str, JsonValue] = {}
    bars: dict[str, JsonValue] = {}
    measured: dict[str, JsonValue] = {}
    source: dict[str, JsonValue] = {}
    plan: JsonValue = None
    audits: Audits = Audits()
    created_at: int | None = None


class ProfilePage(BaseModel):
    """All profiles."""

    object: Literal["list"] = "list"
    data: list[Profile]


class ProfileEventObject(BaseModel):
    """What happened to a version."""

    version: int
    type: str
    at: int
    data: dict[str, JsonValue]


class ProfileHistory(BaseModel):
    """All versions of a name, the newest first."""

    object: Literal["profile.history"] = "profile.history"
    name: str
    data: list[Profile]
    events: list[ProfileEventObject]


@router.get("", dependencies=[READER])
def profiles(deps: Deps) -> ProfilePage:
    """Of all models: what requests can name, and of each name a last version that was rolled back."""
    tally, found = deps.stores.audits.tally(), []
    newest = {(entry.model, entry.name): entry for entry in deps.stores.profiles.versions()}
    rolled_back = [entry for entry in newest.values() if entry.reason == "rolled_back"]
    for model, served in deps.models.items():
        entries = list(deps.stores.profiles.current(model))
        promoted = {entry.name for entry in entries}
        bare = {name: fields for name, fields in served.profiles.items() if name not in promoted}
        found += [Profile(name=name, model=model, fields=dict(fields)) for name, fields in bare.items()]  # ty: ignore[invalid-argument-type]
        entries += [entry for entry in rolled_back if entry.model == model]
        found += [_shown(entry, tally) for entry in sorted(entries, key=lambda each: (each.name, each.version))]
    return ProfilePage(data=found)


@router.post("", openapi_extra=PROFILE_BODY)
async def promote(request: Request, deps: Deps, key: Admin, folder: Scratch) -> Profile:
    """Offer a profile that has passed its gate, first to a share of the requests; the same again is the same."""
    sent = await read_body(request, folder, ())
    return await run_in_threadpool(_promote, deps, key.tenant, sent, folder)


def _promote(deps: ApiDeps, owner: str, sent: Sent, folder: Path) -> Profile:
    profile = SpeedProfile.from_dict(sent.fields)
    if not audited_bars(profile.bars):
        raise ProfileError(
            f"the bars of profile {shown(profile.name)} have no figure that an audit can measure, so its canary would "
            f"never end; add one of {', '.join(AUDITED)} to the gate"
        )
    for fields in (profile.fields, profile.reference):
        _check(deps, owner, profile, fields, folder)
    entry = deps.stores.profiles.promote(owner, profile.as_dict(), profile.content_sha256)
    return _shown(entry, deps.stores.audits.tally())


@router.get("/{profile}", dependencies=[READER])
def history(deps: Deps, profile: Name) -> ProfileHistory:
    """All versions of a name, and what happened to them."""
    versions = deps.stores.profiles.history(profile)
    bare = [(model, fields) for model, served in deps.models.items() if (fields := served.profiles.get(profile))]
    if not versions and not bare:
        raise NotFoundError(f"there is no profile {shown(profile)}; GET /v1/profiles lists them")
    tally = deps.stores.audits.tally()
    shown_bare = [Profile(name=profile, model=model, fields=dict(fields)) for model, fields in bare]  # ty: ignore[invalid-argument-type]
    return ProfileHistory(
        name=profile,
        data=[*(_shown(entry, tally) for entry in versions), *shown_bare],
        events=[
            ProfileEventObject(version=event.version, type=event.type, at=int(event.at), data=dict(event.data))  # ty: ignore[invalid-argument-type]
            for event in deps.stores.profiles.events(profile)
        ],
    )


@router.post("/{profile}/activate", dependencies=[ADMIN])
def activate(deps: Deps, profile: Name) -> Profile:
    """Give this version, by its id, to all requests that name it, whatever its audits said."""
    entry = deps.stores.profiles.activate(profile, {"by": "hand"})
    return _shown(entry, deps.stores.audits.tally())


@router.delete("/{profile}", dependencies=[ADMIN])
def retire(deps: Deps, profile: Name) -> Profile:
    """Offer this version, by its id, no longer; the one that it replaced is offered again."""
    return _shown(deps.stores.profiles.retire(profile), deps.stores.audits.tally())


@router.post("/{profile}/rollback", openapi_extra=ROLLBACK_BODY, dependencies=[ADMIN])
async def roll_back(request: Request, deps: Deps, folder: Scratch, profile: Name) -> Profile:
    """Take this version, by its id, back for what a gate found; the one that it replaced is offered again."""
    sent = await read_body(request, folder, ())
    unknown = [name for name in sent.fields if name not in ("faults", "figures", "gate")]
    if unknown:
        raise RecipeError(
            f"no such field: {shown(unknown[0])}{did_you_mean(unknown[0], ('faults', 'figures', 'gate'))}"
        )
    entry = await run_in_threadpool(deps.stores.profiles.retire, profile, "rolled_back", dict(sent.fields))
    return _shown(entry, deps.stores.audits.tally())


def _check(deps: ApiDeps, owner: str, profile: SpeedProfile, fields: Mapping[str, object], folder: Path) -> None:
    """Resolve and price what a request would get. Raises ProfileError."""
    try:
        served = deps.served(profile.model)
        size = {name: getattr(profile, name) for name in ("model", "width", "height", "num_frames")}
        given = {**_inputs_for(served.card, profile, folder), **size}
        request = parse_request({"prompt": "a dancer", "seed": 0, **given, **fields})
        loras, _ = with_files(deps, owner, served.card, request.loras)
        places = {
            str(lora.path): str(asked.name) for lora, asked in zip(loras, request.loras, strict=True) if lora.path
        }
        with named(places):
            recipe, _, _ = resolve(request.model_copy(update={"loras": loras}), served.card, folder, served.weights)
        served.admit(recipe)
    except ModelError as error:
        raise ProfileError(f"profile {shown(profile.name)}: {error.message}") from error
    except (InputError, LoraError, MemoryLimitError) as error:
        raise ProfileError(f"profile {shown(profile.name)} cannot be rendered here: {error.message}") from error


def _inputs_for(card: ModelCard, profile: SpeedProfile, folder: Path) -> dict[str, object]:
    """Grey stand-ins for what the card's first task cannot do without."""
    task, given = card.tasks[0], {}
    for role in PICTURES.get(task, ()):
        given[role] = str(folder / f"{role}.png")
        Image.new("RGB", (profile.width, profile.height), "grey").save(given[role])
    if task == "camera":
        given["camera_direction"] = "Left"
    if task == "control":
        given["control_video"] = str(folder / "control_video.mp4")
        write_mp4(Path(given["control_video"]), np.full((1, 16, 16, 3), 128, np.uint8), card.fps)
    return given


def _shown(entry: ProfileEntry, tally: Mapping[str, AuditTally]) -> Profile:
    told = entry.profile
    size = {name: told[name] for name in Size.model_fields} if "width" in told else None
    audits = tally.get(entry.id, AuditTally())
    known = {
        name: told[name]
        for name in ("tier", "fields", "reference", "bars", "measured", "source", "plan")
        if name in told
    }
    return Profile.model_validate(
        {
            **known, "id": entry.id, "name": entry.name, "model": entry.model, "version": entry.version,
            "state": entry.state, "reason": entry.reason, "canary_share": entry.canary_share, "size": size,
            "created_at": int(entry.created_at),
            "audits": {"passed": audits.passed, "failed": audits.failed, "open": audits.open},
        }
    )  # fmt: skip
