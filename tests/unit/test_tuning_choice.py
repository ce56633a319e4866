"""Which profile a request gets: names, words for the quality, deadlines, canaries; all without a farm."""

import dataclasses

import pytest

from profile_cases import SIZE, speed_profile
from sakuga.errors import ProfileError
from sakuga.recipe import parse_request
from sakuga.tuning.choice import (
    Choice,
    Offer,
    Wanted,
    by_deadline,
    by_name,
    by_quality,
    is_audited,
    loras_of,
    merged,
)

WANTED = Wanted(prompt="a dancer", seed=1, size=SIZE)


def offer(name: str, version: int = 1, *, canary: float | None = None, **changes: object) -> Offer:
    profile = speed_profile(name, **changes)
    return Offer(
        id=f"{name}-{version}", version=version, is_canary=canary is not None, owner="team", profile=profile,
        canary_share=canary or 0.0,
    )  # fmt: skip


def measured(seconds: float, ref_ssim: float = 0.9, **more: float) -> dict[str, float]:
    return {"seconds": seconds, "reference_seconds": 8.0, "ref_ssim": ref_ssim} | more


def loras(*texts: str):
    return parse_request({"prompt": "x", "loras": list(texts)}).loras


DRAFT = offer("rough", tier="draft", measured=measured(1.0, 0.7))
FAST = offer("fast", measured=measured(2.0, 0.8))
FINE = offer("fine", measured=measured(4.0, 0.95))
LARGE = offer("large", width=64, measured=measured(0.5))
OFFERS = [DRAFT, FAST, FINE, LARGE]


def test_a_name_gives_its_fields_and_its_size():
    choice = by_name([FAST], Wanted(prompt="x", seed=1))
    assert (choice.name, choice.offer, choice.owner, choice.size) == ("fast", FAST, "team", SIZE)
    assert choice.fields == FAST.profile.fields and not choice.notes


@pytest.mark.parametrize("size", [{"width": 64}, {"num_frames": 9}, SIZE | {"height": 16}])
def test_a_name_at_another_size_is_refused_with_its_own(size):
    with pytest.raises(ProfileError, match="profile 'fast' is for 32x32 and 5 frames"):
        by_name([FAST], dataclasses.replace(WANTED, size=size))


def test_a_canary_gets_its_share_and_always_the_same_requests():
    active, canary = offer("fast"), offer("fast", 2, canary=0.25, fields={"num_inference_steps": 2})
    got = [by_name([active, canary], dataclasses.replace(WANTED, seed=seed)).offer for seed in range(400)]
    share = sum(each is canary for each in got) / 400
    assert 0.18 < share < 0.32, share
    assert got == [by_name([active, canary], dataclasses.replace(WANTED, seed=seed)).offer for seed in range(400)]
    others = [by_name([active, canary], Wanted(prompt="another", seed=seed)).offer for seed in range(400)]
    assert others != got, "the prompt counts"


def test_without_a_version_before_it_the_others_get_its_reference():
    canary = offer("fast", canary=0.0)
    choice = by_name([canary], WANTED)
    assert choice.fields == canary.profile.reference and choice.offer is None and choice.owner == "team"
    assert choice.notes == ("profile fast@1 is still tried on 0% of the requests; this is rendered as its reference",)
    assert by_name([offer("fast", canary=1.0)], WANTED).offer is not None


@pytest.mark.parametrize(
    "quality, offers, name",
    [
        ("best", OFFERS, None),
        ("standard", OFFERS, "fast"),
        ("draft", OFFERS, "rough"),
        ("draft", [FAST, FINE], "fast"),
        ("standard", [DRAFT, LARGE], None),
        ("standard", [offer("fast", canary=0.0), FINE], "fine"),
        ("standard", [offer("fast", canary=1.0, measured=measured(1.0)), FINE], "fast"),
        ("standard", [offer("unmeasured", measured={}), FINE], "fine"),
        ("standard", [offer("slow", measured=measured(9.0))], None),
        ("draft", [offer("slow", measured=measured(0.5, speedup=0.9)), FINE], "fine"),
    ],
)
def test_a_word_for_the_quality_gives_the_fastest_that_holds_it(quality, offers, name):
    choice = by_quality(quality, offers, WANTED)
    assert choice.name == name
    assert bool(choice.notes) == (name is None and quality != "best")


def test_what_there_is_not_is_told():
    assert by_quality("standard", [], WANTED).notes == (
        "there is no standard profile for 32x32 and 5 frames; this is rendered as the model's reference",
    )


@pytest.mark.parametrize(
    "deadline_s, wait_s, name, words",
    [
        (8.0, 0.0, None, ""),
        (7.9, 0.0, "fine", "would take about 8 s and deadline_s is 7.9; profile fine@1 makes it, in about 4 s"),
        (3.0, 0.0, "fast", "profile fast@1 makes it"),
        (3.0, 1.5, "rough", "profile rough@1 makes it, in about 2.5 s"),
        (0.5, 0.0, "rough", "nothing makes it, profile rough@1 is the fastest, about 1 s"),
    ],
)  # fmt: skip
def test_a_deadline_gives_the_best_that_makes_it(deadline_s, wait_s, name, words):
    choice = by_deadline(deadline_s, OFFERS, WANTED, lambda: (wait_s, 8.0))
    assert choice.name == name
    assert words in " ".join(choice.notes) and len(choice.notes) == (name is not None)


def test_equal_ssim_is_decided_by_psnr():
    one, two = (offer(name, measured=measured(1.0, ref_psnr_db=db)) for name, db in (("one", 30.0), ("two", 31.0)))
    assert by_deadline(2.0, [one, two], WANTED, lambda: (0.0, 8.0)).name == "two"


def never() -> tuple[float, float]:
    raise AssertionError("nobody needs to know")


def test_a_deadline_changes_nothing_that_the_request_says_itself():
    own = dataclasses.replace(WANTED, own=frozenset({"num_inference_steps"}))
    assert by_deadline(0.1, OFFERS, own, never) == Choice()
    assert by_deadline(0.1, [LARGE], WANTED, never) == Choice()
    slower = offer("slow", measured=measured(9.0))
    assert by_deadline(0.1, [slower], WANTED, never) == Choice(), "slower than the reference"


def test_nobody_gets_a_style_that_he_did_not_name():
    style = offer(
        "style", fields={"loras": ["fairy:0.8", "fast4"]}, reference={"loras": ["fairy:0.8"]}, measured=measured(1.0)
    )
    assert by_quality("standard", [style], WANTED).name is None
    styled = dataclasses.replace(WANTED, loras=loras("fairy:0.5"), own=frozenset({"loras"}))
    assert by_quality("standard", [style, FAST], styled).name == "style"
    assert by_deadline(2.0, [style, FAST], styled, lambda: (0.0, 8.0)).name == "style"
    other = dataclasses.replace(styled, loras=loras("another"))
    assert by_quality("standard", [style, FAST], other).name is None
    assert "with these LoRAs" in by_quality("standard", [style, FAST], other).notes[0]
    assert by_name([style], WANTED).name == "style", "who names the profile wants it"


def test_loras_of_the_request_come_first_and_those_of_the_profile_stay():
    fields = {"loras": ["fairy:0.8", "fast4"]}
    assert merged(loras("me:0.7", "fairy:0.2"), fields) == loras("me:0.7", "fairy:0.2", "fast4")
    assert merged((), {}) == () == loras_of({})


def test_what_is_audited():
    choice = by_name([offer("fast", audit_share=1.0)], WANTED)
    assert is_audited(choice, WANTED) and not is_audited(choice, WANTED, 0.0)
    assert not is_audited(choice, dataclasses.replace(WANTED, own=frozenset({"guidance_scale"})))
    assert not is_audited(Choice(), WANTED) and not is_audited(by_name([offer("fast", canary=0.0)], WANTED), WANTED)
    styled = by_name([offer("fast", audit_share=1.0, fields={"loras": ["fairy:0.8"]})], WANTED)
    same, other = (
        dataclasses.replace(WANTED, own=frozenset({"loras"}), loras=loras(text)) for text in ("fairy:0.8", "fairy")
    )
    assert is_audited(styled, same) and not is_audited(styled, other)


def test_versions_in_canary_are_audited_more():
    def share(choice: Choice) -> float:
        return sum(is_audited(choice, dataclasses.replace(WANTED, seed=seed)) for seed in range(400)) / 400

    assert share(by_name([offer("fast", audit_share=0.0)], WANTED)) == 0.0
    assert 0.4 < share(by_name([offer("fast", canary=1.0, audit_share=0.0)], WANTED)) < 0.6
    assert share(by_name([offer("fast", canary=1.0, audit_share=1.0)], WANTED)) == 1.0
