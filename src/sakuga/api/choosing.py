"""What a request's `profile`, `quality` or `deadline_s` make of it: the registry and the queue are asked here.

The registry is read for each request that says one of them, so a promotion or a rollback holds from the next one on.

Run: pytest tests/unit/test_api_choosing.py
"""

from collections.abc import Callable, Mapping

from sakuga.api.deps import ApiDeps, ServedModel
from sakuga.api.fields import Wish
from sakuga.errors import ProfileError, RecipeError, did_you_mean, shown
from sakuga.recipe import RecipeRequest, parse_request
from sakuga.tuning.choice import Choice, Offer, Wanted, as_reference, by_deadline, by_name, by_quality, merged
from sakuga.tuning.profiles import PROFILE_FIELDS

SIZE = ("width", "height", "num_frames")


def wanted_of(request: RecipeRequest, served: ServedModel, *, is_whole: bool) -> Wanted:
    """The request as choices see it; `is_whole` fills in the card's size, for profiles that nobody named."""
    card = served.card
    size = {name: getattr(request, name) or (getattr(card, name) if is_whole else None) for name in SIZE}
    assert request.seed is not None, "a seed is drawn before anything is chosen"
    return Wanted(
        prompt=request.prompt,
        seed=request.seed,
        size={name: value for name, value in size.items() if value is not None},
        own=frozenset(name for name in PROFILE_FIELDS if name in request.model_fields_set),
        loras=request.loras,
    )


def choose(
    deps: ApiDeps, served: ServedModel, wish: Wish, request: RecipeRequest, price: Callable[[], float]
) -> Choice:
    """The fields that go beneath those of the request; `price` says what it takes as it is.

    Raises ProfileError for a profile that there is not, or not for this model or size.
    """
    if wish.profile is not None and wish.quality is not None:
        raise RecipeError("profile and quality both say how the video is rendered; give one of them")
    if wish.profile is None and wish.quality is None and wish.deadline_s is None:
        return Choice()
    entries = deps.stores.profiles.current(served.card.name)
    offers = [offer for entry in entries if (offer := Offer.of(entry)) is not None]
    if wish.profile is not None:
        mine = [offer for offer in offers if offer.profile.name == wish.profile]
        if mine:
            return by_name(mine, wanted_of(request, served, is_whole=False))
        bare: dict[str, object] = {**served.profiles, **{entry.name: entry.profile.get("fields") for entry in entries}}
        fields = bare.get(wish.profile)
        if isinstance(fields, Mapping):
            return Choice(name=wish.profile, fields=dict(fields))
        return _not_offered(deps, served, wish.profile, [*bare, *(offer.profile.name for offer in offers)])
    wanted = wanted_of(request, served, is_whole=True)
    if wish.quality is not None:
        return by_quality(wish.quality, offers, wanted)
    assert wish.deadline_s is not None
    model, priority = served.card.name, wish.priority
    return by_deadline(wish.deadline_s, offers, wanted, lambda: (_wait_s(deps, model, priority), price()))


def filled(request: RecipeRequest, choice: Choice) -> RecipeRequest:
    """The request with the chosen fields where it leaves them open."""
    if not choice.fields and not choice.size:
        return request
    own = request.model_dump(exclude_unset=True) | {"loras": merged(request.loras, choice.fields)}
    return parse_request(own, {**choice.fields, **choice.size})


def _not_offered(deps: ApiDeps, served: ServedModel, name: str, known: list[str]) -> Choice:
    """An application goes on asking for a profile that was rolled back: it gets the reference."""
    model, versions = served.card.name, deps.stores.profiles.history(name)
    last = next((entry for entry in versions if entry.model == model), None)
    offer = Offer.of(last) if last is not None and last.reason == "rolled_back" else None
    if offer is not None:
        return as_reference(offer, "was rolled back")
    other = next((entry.model for entry in versions if entry.state != "retired" and entry.model in deps.models), None)
    if other is not None:
        raise ProfileError(f"profile {shown(name)} is for {other}; ask for that model, or for a profile of {model}")
    hint = did_you_mean(name, known) or f"; it has {', '.join(sorted(set(known))) or 'none'}"
    raise ProfileError(f"profile {shown(name)} is none of {model}{hint}")


def _wait_s(deps: ApiDeps, model: str, priority: str) -> float:
    """Until a lane would begin with what is submitted now; pessimistic while some lanes are idle."""
    backlog, place = deps.stores.jobs.backlog().get(model), deps.stores.jobs.newcomer(model, priority)
    if backlog is None:
        return 0.0
    return max(place.ahead_s, backlog.running_s) / max(1, backlog.num_running)
