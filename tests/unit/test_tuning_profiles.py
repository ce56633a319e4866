"""A speed profile as a value: the way to JSON and back, and what is refused."""

import dataclasses

import pytest

from sakuga.errors import ProfileError
from sakuga.tuning.figures import parse_bars
from sakuga.tuning.profiles import SpeedProfile

PROFILE = SpeedProfile(
    name="fairy-fast",
    model="wan-mini",
    width=128,
    height=128,
    num_frames=17,
    fields={"num_inference_steps": 8, "step_cache": "teacache:0.1", "loras": ["fairy:0.8"]},
    reference={"num_inference_steps": 20, "loras": ["fairy:0.8"]},
    bars=parse_bars({"ref_ssim": {"min": 0.9}}),
    measured={"ref_ssim": 0.93, "seconds": 0.8, "reference_seconds": 2.0, "speedup": 2.5},
)


def test_a_profile_goes_through_json_and_back():
    assert SpeedProfile.from_dict(PROFILE.as_dict()) == PROFILE


def test_the_content_hash_is_of_the_choice_alone():
    renamed = dataclasses.replace(PROFILE, name="other", measured={"ref_ssim": 0.1}, canary_share=1.0)
    assert renamed.content_sha256 == PROFILE.content_sha256
    assert dataclasses.replace(PROFILE, num_frames=33).content_sha256 != PROFILE.content_sha256
    assert dataclasses.replace(PROFILE, fields={"num_inference_steps": 9}).content_sha256 != PROFILE.content_sha256


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fields": {"prompt": "a cat"}}, "does not choose 'prompt'"),
        ({"fields": {"num_inference_step": 8}}, "did you mean 'num_inference_steps'"),
        ({"fields": {"num_inference_steps": 0}}, "fields of the profile: num_inference_steps is 0"),
        ({"tier": "best"}, "tier is 'best'"),
        ({"canary_share": 1.5}, "canary_share is 1.5"),
        ({"canary_share": 0}, "no request would ever try the profile"),
        ({"measured": {"ref_ssim": float("nan")}}, "finite number"),
        ({"width": 0}, "width of profile 'fairy-fast' is 0"),
        ({"speed": 3}, "no field 'speed'"),
    ],
)
def test_what_no_farm_can_use_is_refused(change, message):
    with pytest.raises(ProfileError, match=message):
        SpeedProfile.from_dict(PROFILE.as_dict() | change)


def test_a_missing_field_is_named():
    fields = PROFILE.as_dict()
    del fields["reference"]
    with pytest.raises(ProfileError, match="the profile lacks reference"):
        SpeedProfile.from_dict(fields)
