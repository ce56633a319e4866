"""Drift, identity, prompt adherence and the figures by name, on videos of known truth."""

import json
import math
from itertools import pairwise

import cv2
import numpy as np
import pytest

from sakuga.errors import VideoError
from sakuga.quality import temporal
from sakuga.quality.adherence import adherence, colour_boxes, named_attributes, nearest_colour
from sakuga.quality.drift import LAB_PER_OCTAVE, drift
from sakuga.quality.figures import figures_of
from sakuga.quality.identity import identity
from sakuga.synth import HAIR_COLOURS, HELD_OUT_SEED, OUTFIT_COLOURS, make_sample

NUM_FRAMES = 12


def texture(seed: int, side: int = 64) -> np.ndarray:
    field = np.random.default_rng(seed).standard_normal((side, side, 3)).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), 2)
    return 128 + 30 * field / field.std()


def rounded(video: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def still(seed: int, num_frames: int = NUM_FRAMES) -> np.ndarray:
    return rounded(np.stack([texture(seed)] * num_frames))


def grey(*levels: int) -> np.ndarray:
    return np.stack([np.full((32, 32, 3), level, dtype=np.uint8) for level in levels])


@pytest.fixture(scope="module", params=["live", "fairy"])
def samples(request):
    return [make_sample(HELD_OUT_SEED + n, request.param, num_frames=9) for n in range(6)]


def test_a_frozen_video_does_not_drift(seed):
    measured = drift(still(seed))
    assert (measured.mean, measured.slope) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert measured.curve == pytest.approx([0.0] * NUM_FRAMES, abs=1e-9)  # a mean of three equal floats may differ


def test_a_step_of_light_is_its_distance_in_lab():
    """Grey 119 is lightness 50 and 188 is 76.2, by the definition of CIE Lab for sRGB."""
    measured = drift(grey(*[119] * 4, *[188] * 4))
    assert measured.brightness[-1] == pytest.approx(76.2 - 50.0, abs=0.3)
    assert measured.colour[-1] == pytest.approx(0.0, abs=0.01)
    assert measured.sharpness_octaves == (0.0,) * 8
    assert measured.mean == pytest.approx(measured.brightness[-1] / 2, abs=1e-9)
    assert measured.slope > measured.mean


def test_colour_is_told_from_light():
    red, video = np.zeros((8, 32, 32, 3), dtype=np.uint8), np.zeros((8, 32, 32, 3), dtype=np.uint8)
    red[..., 0], video[...] = 255, 127  # of lightness 53.2 both
    video[4:] = red[4:]
    measured = drift(video)
    assert measured.colour[-1] == pytest.approx(math.hypot(80.1, 67.2), abs=0.5)
    assert abs(measured.brightness[-1]) < 0.5


def test_blur_is_drift_of_sharpness_alone(seed):
    video = still(seed)
    video[6:] = cv2.GaussianBlur(video[0], (0, 0), 1.5)
    measured = drift(video)
    assert measured.sharpness_octaves[-1] < -1
    assert measured.curve[-1] == pytest.approx(LAB_PER_OCTAVE * abs(measured.sharpness_octaves[-1]), abs=0.3)


def test_a_slow_fade_shows_in_drift_and_not_in_flicker(seed):
    """6 % a frame down to a third: flicker and warp error see no more than in the still video."""
    fading = rounded(still(seed) * np.linspace(1.0, 0.33, NUM_FRAMES)[:, None, None, None])
    measured, in_time = drift(fading), temporal(fading)
    assert in_time.flicker is not None and in_time.flicker < 0.004
    assert measured.brightness[-1] < -25
    assert list(measured.curve[2:]) == sorted(measured.curve[2:])
    assert measured.slope > 20 and measured.mean > 10


def test_what_comes_back_has_no_slope(seed):
    beat = 1 - 0.3 * np.sin(2 * np.pi * np.arange(25) / 4) ** 2
    measured = drift(rounded(still(seed, 25) * beat[:, None, None, None]))
    assert measured.mean > 3
    assert abs(measured.slope) < 1


def test_drift_of_one_frame_is_none_at_all(seed):
    one = drift(still(seed, 1))
    assert (one.mean, one.slope, one.curve) == (0.0, 0.0, (0.0,))


def test_a_frozen_video_keeps_its_identity(seed):
    measured = identity(still(seed))
    assert measured is not None
    assert measured.mean == measured.min == measured.coverage == pytest.approx(1.0, abs=1e-12)
    assert len(measured.curve) == NUM_FRAMES


def test_a_pan_keeps_what_stays_in_the_picture(seed):
    """Over a quarter of the picture. What it leaves behind is lost, and a little more at the edge."""
    wide = texture(seed, 200)
    video = rounded(np.stack([wide[20:148, 20 + 4 * t : 148 + 4 * t] for t in range(9)]))
    measured = identity(video)
    assert measured is not None
    for t, share in enumerate(measured.curve):
        assert 1 - 4 * t / 128 - 0.13 < share < 1 - 4 * t / 128 + 0.01


def test_a_dancer_is_herself_and_a_stranger_is_not(samples):
    """The fairy's photo turns on purpose: less is left of it, still far more than of a stranger."""
    live = samples[0].world == "live"
    for sample, other in pairwise(samples):
        own = identity(sample.video_THWC)
        swapped = sample.video_THWC.copy()
        swapped[1:] = other.video_THWC[1:]
        stranger = identity(swapped)
        assert own is not None and stranger is not None
        assert own.mean > (0.6 if live else 0.1)
        assert stranger.mean < min(0.3, own.mean / 2.5)
        assert stranger.min <= stranger.mean


def test_a_stranger_at_the_end_is_the_minimum(seed):
    video = still(seed)
    video[-1] = rounded(texture(seed + 1))
    measured = identity(video)
    assert measured is not None
    assert measured.min == measured.curve[-1] < 0.2
    assert measured.curve[:-1] == pytest.approx([1.0] * (NUM_FRAMES - 1))


def test_identity_of_what_is_too_short_or_small_is_none(seed):
    assert identity(still(seed, 1)) is None
    assert identity(still(seed)[:, :15]) is None


def test_drawn_samples_adhere_to_their_prompts_and_to_no_others(samples):
    scores, others = [], []
    for sample, other in zip(samples, samples[1:] + samples[:1], strict=True):
        for prompt in sample.prompts:
            measured = adherence(sample.video_THWC, prompt)
            assert measured.note is None, prompt
            scores.append(measured.mean)
        hair, outfit = other.figure.hair_colour, other.figure.outfit_colour
        if hair != sample.figure.hair_colour and outfit != sample.figure.outfit_colour:
            named = named_attributes(sample.prompt)
            assert (named.hair_colour, named.outfit_colour) == (sample.figure.hair_colour, sample.figure.outfit_colour)
            assert named.choreography == sample.choreography
            swapped = sample.prompt.replace(f"{sample.figure.hair_colour} ", f"{hair} ")
            swapped = swapped.replace(f"{sample.figure.outfit_colour} {sample.figure.outfit}",
                                      f"{outfit} {sample.figure.outfit}")  # fmt: skip
            others.append(adherence(sample.video_THWC, swapped).mean)
    assert np.mean(scores) > (0.98 if samples[0].world == "live" else 0.85)  # of 9 frames the fairy's turn hides some
    assert others and np.mean(others) < 0.1


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "no hair colour"),
        ("A cat sits in the rain.", "no hair colour"),
        ("A girl with long turquoise hair in a red dress, a slow twirl boldly, to the left.", "no hair colour"),
        ("A girl with long red hair, a slow twirl boldly, to the left.", "no outfit colour"),
        ("A girl with long red hair in a red dress sits.", "no dance"),
    ],
)
def test_a_prompt_that_cannot_be_looked_for_gets_a_reason_and_no_number(prompt, said, seed):
    measured = adherence(still(seed), prompt)
    assert (measured.hair, measured.outfit, measured.mean) == (None, None, None)
    assert measured.note is not None and said in measured.note
    assert "adherence" not in figures_of(still(seed), prompt=prompt)


def test_boxes_stay_in_the_picture_and_colours_are_named(samples):
    sample = samples[0]
    for width, height in ((32, 32), (48, 200), (200, 48)):
        for box in colour_boxes(sample.choreography, width, height, 0.5):
            assert nearest_colour(np.full((height, width, 3), 240, np.uint8), box, HAIR_COLOURS) == "white"
    assert nearest_colour(grey(34)[0], (-9, -3, 40, 50), HAIR_COLOURS) == "black"
    assert set(OUTFIT_COLOURS) - set(HAIR_COLOURS) == {"orange", "yellow", "purple"}


def test_all_figures_have_their_names(samples):
    sample = samples[0]
    noisy = sample.video_THWC.astype(int) + np.random.default_rng(1).integers(-9, 10, sample.video_THWC.shape)
    video = np.clip(noisy, 0, 255).astype(np.uint8)
    found = figures_of(video, reference_THWC=sample.video_THWC, target_THWC=sample.video_THWC, prompt=sample.prompt)
    own = {"flicker", "motion", "warp_error", "drift", "identity", "adherence"}
    assert set(found) == own | {"ref_psnr_db", "ref_ssim", "flicker_ratio", "motion_ratio", "psnr_db", "ssim"}
    assert (found["psnr_db"], found["ssim"]) == (found["ref_psnr_db"], found["ref_ssim"])
    assert 25 < found["psnr_db"] < 40
    assert found["flicker_ratio"] > 1.05
    assert set(figures_of(video)) == own - {"adherence"}
    assert all(type(value) is float for value in found.values())
    json.dumps(found, allow_nan=False)


def test_equal_and_frozen_videos_have_finite_figures(seed):
    found = figures_of(still(seed), reference_THWC=still(seed), target_THWC=still(seed))
    assert found["psnr_db"] == found["ref_psnr_db"] == 100.0
    assert found["flicker"] == found["motion"] == 0.0
    assert not {"flicker_ratio", "motion_ratio"} & set(found), "a reference that does not move has no ratio"


def test_flicker_is_never_without_motion(seed):
    for video in (still(seed, 1), still(seed, 2), still(seed, 3), still(seed)[:, :15]):
        found = figures_of(video, reference_THWC=video)
        assert "motion" in found or "flicker" not in found
        assert "drift" in found


def test_videos_that_do_not_fit_are_refused(seed):
    with pytest.raises(VideoError, match=r"12 frames .* 3"):
        figures_of(still(seed, 3), reference_THWC=still(seed))
    with pytest.raises(VideoError, match="float"):
        figures_of(still(seed).astype(float))
