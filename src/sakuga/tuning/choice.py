"""Which promoted profile a request gets: by its name, by a word for the quality, by its deadline.

Pure: it looks at what is offered, at the request and at seconds that it is given, and gives back fields and notes. A
version in canary is drawn by a hash of what makes the picture, so that the same request twice is the same render.

Run: pytest tests/unit/test_tuning_choice.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from sakuga.errors import ProfileError, shown
from sakuga.jobstore import ProfileEntry
from sakuga.recipe import LoraRequest, parse_request
from sakuga.tuning.profiles import TIERS, SpeedProfile

QUALITIES = ("draft", "standard", "best")
CANARY_AUDIT_SHARE = 0.5
"""Of the renders of a version in canary at least so many are audited: it is there to be decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A version of a promoted profile."""

    id: str
    version: int
    is_canary: bool
    owner: str
    """The tenant whose LoRAs it names."""
    profile: SpeedProfile
    canary_share: float

    @classmethod
    def of(cls, entry: ProfileEntry) -> Offer | None:
        """None for an entry from before profiles had sizes: its fields are all that there is of it."""
        if "width" not in entry.profile:
            return None
        return cls(
            id=entry.id, version=entry.version, is_canary=entry.state == "canary", owner=entry.owner,
            profile=SpeedProfile.from_dict(entry.profile), canary_share=entry.canary_share,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.profile.name}@{self.version}"

    @property
    def speedup(self) -> float:
        """Over its reference, as it was measured; 1 when that is not known."""
        seconds, reference_s = (self.profile.measured.get(name) for name in ("seconds", "reference_seconds"))
        by_seconds = reference_s / seconds if seconds and reference_s else 1.0
        return max(self.profile.measured.get("speedup", by_seconds), 1e-6)

    @property
    def quality(self) -> tuple[float, ...]:
        """Against its reference, as it was measured."""
        return tuple(self.profile.measured.get(name, float("-inf")) for name in ("ref_ssim", "ref_psnr_db"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of a request decides."""

    prompt: str
    seed: int
    size: Mapping[str, int] = field(default_factory=dict)
    """Of width, height and num_frames those that it says."""
    own: frozenset[str] = frozenset()
    """Of `PROFILE_FIELDS` those that it sets itself."""
    loras: Sequence[LoraRequest] = ()

    def chance(self, profile_id: str, of: str) -> float:
        """From 0 up to 1, always the same for the same picture."""
        text = json.dumps([of, self.prompt, self.seed, profile_id])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Fields to go beneath those of a request."""

    name: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    size: Mapping[str, int] = field(default_factory=dict)
    owner: str | None = None
    """The tenant whose LoRAs the fields name; None: the request's."""
    offer: Offer | None = None
    """The version whose fields these are; None for its reference, and without a profile."""
    notes: tuple[str, ...] = ()


def by_name(offers: Sequence[Offer], wanted: Wanted) -> Choice:
    """Of the versions of one name that in canary or the active one; else its reference.

    Raises ProfileError for a request of another size.
    """
    fitting = [offer for offer in offers if _fits(offer.profile, wanted)]
    if not fitting:
        profile = offers[-1].profile
        raise ProfileError(
            f"profile {shown(profile.name)} is for {_size(_size_of(profile))}; leave the size and the length out, or "
            "ask for these"
        )
    offer = _drawn(fitting, wanted)
    if offer is not None:
        return _with(offer)
    share = fitting[-1].canary_share
    return as_reference(fitting[-1], f"is still tried on {share:.0%} of the requests")


def as_reference(offer: Offer, why: str) -> Choice:
    """What a profile is measured against, for requests that cannot get it."""
    profile = offer.profile
    return Choice(
        name=profile.name,
        fields=profile.reference,
        size=_size_of(profile),
        owner=offer.owner,
        notes=(f"profile {offer} {why}; this is rendered as its reference",),
    )


def by_quality(quality: str, offers: Sequence[Offer], wanted: Wanted) -> Choice:
    """The fastest profile that is good enough, faster than its reference and was measured at this size, with these
    LoRAs; else none."""
    if quality == "best":
        return Choice()
    found = _usable(offers, wanted, TIERS if quality == "draft" else (quality,))
    if found:
        return _with(min(found, key=lambda offer: offer.profile.measured.get("seconds", float("inf"))))
    told = f"there is no {quality} profile for {_size(wanted.size)}{' with these LoRAs' if wanted.loras else ''}"
    return Choice(notes=(f"{told}; this is rendered as the model's reference",))


def by_deadline(
    deadline_s: float, offers: Sequence[Offer], wanted: Wanted, look: Callable[[], tuple[float, float]]
) -> Choice:
    """None while the reference makes it; then the best profile that does, or the fastest if none does.

    `look` gives the seconds until a lane begins and those of the request as it is; it is asked when it matters.
    """
    faster = _usable(offers, wanted, TIERS)
    if wanted.own - {"loras"} or not faster:
        return Choice()
    wait_s, reference_s = look()
    if wait_s + reference_s <= deadline_s:
        return Choice()
    ready_s = {offer.id: wait_s + reference_s / offer.speedup for offer in faster}
    in_time = [offer for offer in faster if ready_s[offer.id] <= deadline_s]
    told = f"the reference would take about {wait_s + reference_s:.3g} s and deadline_s is {deadline_s:g}"
    if in_time:
        chosen = max(in_time, key=lambda offer: (offer.quality, offer.speedup))
        return _with(chosen, f"{told}; profile {chosen} makes it, in about {ready_s[chosen.id]:.3g} s")
    chosen = min(faster, key=lambda offer: ready_s[offer.id])
    return _with(chosen, f"{told}; nothing makes it, profile {chosen} is the fastest, about {ready_s[chosen.id]:.3g} s")


def merged(own: Sequence[LoraRequest], fields: Mapping[str, object]) -> tuple[LoraRequest, ...]:
    """A request's LoRAs, then those of a profile that it does not name."""
    names = {lora.name for lora in own}
    return (*own, *(lora for lora in loras_of(fields) if lora.name not in names))


def loras_of(fields: Mapping[str, object]) -> tuple[LoraRequest, ...]:
    """Of a profile's fields."""
    return parse_request({"prompt": "a dancer", "loras": fields.get("loras")}).loras


def is_audited(choice: Choice, wanted: Wanted, share_max: float = 1.0) -> bool:
    """Whether this render shall be held to its reference: the profile as it was measured, and drawn."""
    offer = choice.offer
    if offer is None or wanted.own - {"loras"} or any(lora not in loras_of(choice.fields) for lora in wanted.loras):
        return False
    share = offer.profile.audit_share
    share = max(share, CANARY_AUDIT_SHARE) if offer.is_canary else share
    return wanted.chance(offer.id, "audit") < min(share, share_max)


def _with(offer: Offer, *notes: str) -> Choice:
    profile = offer.profile
    size = _size_of(profile)
    return Choice(name=profile.name, fields=profile.fields, size=size, owner=offer.owner, offer=offer, notes=notes)


def _usable(offers: Iterable[Offer], wanted: Wanted, tiers: Sequence[str]) -> list[Offer]:
    """Of each name the version that this request would get, if it is faster than its reference.

    Nobody named these profiles, so none may bring a style: they are for requests with the LoRAs of their references.
    """
    asked = {lora.name for lora in wanted.loras}
    fitting = [
        offer
        for offer in offers
        if offer.profile.tier in tiers
        and _fits(offer.profile, wanted)
        and {lora.name for lora in loras_of(offer.profile.reference)} == asked
    ]
    by_name = groupby(sorted(fitting, key=_name_of), key=_name_of)
    drawn = [_drawn(list(versions), wanted) for _, versions in by_name]
    return [offer for offer in drawn if offer is not None and offer.speedup > 1]


def _drawn(versions: Sequence[Offer], wanted: Wanted) -> Offer | None:
    """The version in canary for its share of the requests, else the active one."""
    canary = next((offer for offer in versions if offer.is_canary), None)
    if canary is not None and wanted.chance(canary.id, "canary") < canary.canary_share:
        return canary
    return next((offer for offer in versions if not offer.is_canary), None)


def _fits(profile: SpeedProfile, wanted: Wanted) -> bool:
    return all(getattr(profile, name) == value for name, value in wanted.size.items())


def _size_of(profile: SpeedProfile) -> dict[str, int]:
    return {"width": profile.width, "height": profile.height, "num_frames": profile.num_frames}


def _size(size: Mapping[str, int]) -> str:
    return f"{size['width']}x{size['height']} and {size['num_frames']} frames"


def _name_of(offer: Offer) -> str:
    return offer.profile.name
