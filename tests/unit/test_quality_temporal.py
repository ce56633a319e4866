"""Flicker, motion and warp error on clips of known truth: what moves must not flicker, what flickers must not move."""

import math

import cv2
import numpy as np
import pytest

from sakuga.errors import VideoError
from sakuga.media import read_video, write_mp4
from sakuga.quality import flicker, motion, temporal, warp_error

NUM_FRAMES, SIDE = 13, 128
FIVE_LEVELS = 5 / 255


def texture(seed: int, side: int = 400) -> np.ndarray:
    field = np.random.default_rng(seed).standard_normal((side, side, 3)).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), 2)
    return 128 + 30 * field / field.std()


def seen_from(picture: np.ndarray, x: float, y: float, side: int = SIDE) -> np.ndarray:
    move = np.array([[1, 0, x], [0, 1, y]], dtype=np.float32)
    return cv2.warpAffine(picture, move, (side, side), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)


def rounded(video: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def still(seed: int) -> np.ndarray:
    return np.stack([texture(seed)[100 : 100 + SIDE, 100 : 100 + SIDE]] * NUM_FRAMES)


def pan(seed: int, step_x: float, step_y: float) -> np.ndarray:
    picture = texture(seed)
    return np.stack([seen_from(picture, 100 + step_x * t, 100 + step_y * t) for t in range(NUM_FRAMES)])


def swing(seed: int, amplitude: float = 12.0) -> np.ndarray:
    """A textured disc swings before a textured ground, covering and uncovering it."""
    ground, body = still(seed)[0], texture(seed + 1)
    frames = []
    for t in range(NUM_FRAMES):
        x = 64 + amplitude * math.sin(2 * math.pi * t / 12)
        disc = disc_at(x, 22)[..., None]
        frames.append(ground * (1 - disc) + seen_from(body, 150 - x, 100) * disc)
    return np.stack(frames)


def disc_at(x: float, radius: int) -> np.ndarray:
    disc = np.zeros((SIDE, SIDE), dtype=np.float32)
    cv2.circle(disc, (round(16 * x), 16 * 64), 16 * radius, 1.0, -1, cv2.LINE_AA, 4)
    return disc


def beat(levels: float, period: int) -> np.ndarray:
    """A square wave, half the period above and half below."""
    high = np.arange(NUM_FRAMES) % period < period / 2
    return np.where(high, levels / 2, -levels / 2)[:, None, None, None]


def frame_difference(video: np.ndarray) -> float:
    """The figure in circulation."""
    return float(np.abs(np.diff(video.astype(float), axis=0)).mean() / 255)


def test_a_frozen_video_has_no_flicker_and_shows_it_by_its_motion(seed):
    """Exactly 0, so that nobody takes the perfect flicker of a frozen video for quality."""
    measured = temporal(rounded(still(seed)))
    assert measured.flicker == measured.motion == measured.warp_error == 0.0
    assert measured.frozen_share == measured.warp_coverage == 1.0


def test_freezes_within_a_video_are_told(seed):
    frozen = rounded(pan(seed, 1.5, 0))
    frozen[4:8] = frozen[3]
    assert temporal(frozen).frozen_share == 4 / 12
    assert temporal(rounded(pan(seed, 0.25, 0))).frozen_share == 0.0


def test_a_codec_does_not_hide_a_freeze_nor_a_still_ground_a_small_figure(seed, tmp_path):
    write_mp4(tmp_path / "frozen.mp4", rounded(still(seed)), 15)
    coded = temporal(read_video(tmp_path / "frozen.mp4"))
    assert coded.frozen_share == 1.0
    assert coded.motion is not None and coded.motion < 0.03
    discs = np.stack([disc_at(60 + 0.5 * t, 5) for t in range(NUM_FRAMES)])[..., None]
    small = rounded(120 + 60 * discs.repeat(3, axis=-1))
    assert frame_difference(small) < 0.001
    assert temporal(small).frozen_share == 0.0


@pytest.mark.parametrize("step", [(1.0, 0.0), (1.37, -0.61), (-4.3, 2.1), (0.3, 0.2)])
def test_a_pan_moves_at_its_speed_and_does_not_flicker(step, seed):
    video = rounded(pan(seed, *step))
    measured = temporal(video)
    assert measured.motion == pytest.approx(math.hypot(*step), rel=0.04, abs=0.06)
    assert measured.flicker < 0.002
    assert measured.warp_error < 5e-5
    assert frame_difference(video) > 4 * measured.flicker


@pytest.mark.parametrize("period", [2, 4])
@pytest.mark.parametrize("clip", ["still", "pan", "swing"])
def test_flicker_is_as_large_as_the_light_that_flickers(clip, period, seed):
    """Over a still, a pan and a dancer alike; period 4 is the beat of a 4-frame VAE, unseen at both ends."""
    clean = {"still": still(seed), "pan": pan(seed, 1.3, -0.6), "swing": swing(seed)}[clip]
    shaken = rounded(clean + beat(5, period))
    seen = {2: 1.0, 4: (NUM_FRAMES - 4) / (NUM_FRAMES - 2)}[period]
    bad, good = temporal(shaken), temporal(rounded(clean))
    assert bad.flicker == pytest.approx(FIVE_LEVELS * seen, rel=0.2)
    assert good.flicker < 0.2 * FIVE_LEVELS
    assert bad.motion == pytest.approx(good.motion, rel=0.05, abs=0.06)


def test_the_frame_difference_is_fooled_where_flicker_is_not(seed):
    calm, bad = rounded(pan(seed, 3.0, 1.0)), rounded(still(seed) + beat(5, 2))
    assert frame_difference(calm) > frame_difference(bad)
    assert flicker(calm) < 0.1 * flicker(bad)


def test_fades_and_cuts_are_not_flicker(seed):
    fade = rounded(swing(seed) * np.linspace(1.0, 0.3, NUM_FRAMES)[:, None, None, None])
    assert flicker(fade) < 0.004
    cut = rounded(np.concatenate([still(seed)[:7], still(seed + 5)[:6]]))
    assert flicker(cut) < 0.002


def test_boiling_texture_is_flicker(seed):
    draw = np.random.default_rng(seed)
    clean = swing(seed)
    boil = np.stack([cv2.GaussianBlur(draw.standard_normal((SIDE, SIDE)).astype(np.float32), (0, 0), 3) for _ in clean])
    boiling = rounded(clean + 5 * (boil / boil.std())[..., None])
    bad, good = temporal(boiling), temporal(rounded(clean))
    assert bad.flicker > 4 * good.flicker
    assert bad.warp_error > 2 * good.warp_error


def test_black_and_white_in_turn_is_the_most_there_is():
    video = np.zeros((6, 32, 40, 3), dtype=np.uint8)
    video[::2] = 255
    measured = temporal(video)
    assert measured.flicker == pytest.approx(1.0, abs=1e-6)
    assert measured.motion == 0.0
    assert measured.warp_error == pytest.approx(1.0, abs=1e-6)


def test_one_flash_is_its_share_of_the_frames_that_have_neighbours(seed):
    """20 levels in one of 5 frames: 3 frames have neighbours, and those beside the flash agree with one of theirs."""
    flash = np.array([0, 0, 20, 0, 0])[:, None, None, None]
    assert flicker(rounded(still(seed)[:5] + flash)) == pytest.approx(20 / 255 / 3, rel=0.02)


@pytest.mark.parametrize("levels", [4, 12])
def test_the_warp_error_of_a_step_of_light_is_its_square(levels, seed):
    """Over a still picture and over a pan, whose own error is far below."""
    steps = levels * (np.arange(NUM_FRAMES) % 2)[:, None, None, None]
    for clean in (still(seed), pan(seed, 1.3, -0.6)):
        assert warp_error(rounded(clean + steps)) == pytest.approx((levels / 255) ** 2, rel=0.1, abs=5e-5)


def test_motion_is_that_of_the_moving_part(seed):
    """A quarter of the frame slides by 2 pixels, the rest stands: 0.5, but for the seams."""
    video, sliding = still(seed), pan(seed + 1, 2.0, 0.0)
    video[:, 32:96, 32:96] = sliding[:, :64, :64]
    assert motion(rounded(video)) == pytest.approx(0.5, rel=0.15)


def test_noise_flickers_and_cannot_be_followed(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    measured = temporal(noise)
    assert measured.flicker is not None and 0.05 < measured.flicker <= 1
    assert measured.warp_coverage is not None and measured.warp_coverage < 0.4


@pytest.mark.parametrize("amplitude", [5, 10, 20])
def test_the_motion_of_a_flat_disc_is_that_of_the_disc(amplitude):
    """Cel colours have no texture: flow that leaks from the outline over the ground makes 4.5 times too much."""
    places = [64 + amplitude * math.sin(2 * math.pi * t / 12) for t in range(NUM_FRAMES)]
    discs = np.stack([disc_at(x, 22) for x in places])[..., None]
    video = rounded(200 * (1 - discs) + np.array([60.0, 90.0, 220.0]) * discs)
    truth = np.abs(np.diff(places)).mean() * math.pi * 22**2 / SIDE**2
    assert motion(video) == pytest.approx(truth, rel=0.25)


def test_a_grey_video_is_still():
    measured = temporal(np.full((4, 40, 56, 3), 127, dtype=np.uint8))
    assert (measured.flicker, measured.motion, measured.warp_error, measured.warp_coverage) == (0.0, 0.0, 0.0, 1.0)


def test_what_is_too_short_to_say_is_none(seed):
    clip = rounded(pan(seed, 1.0, 0.0))
    one, two = temporal(clip[:1]), temporal(clip[:2])
    assert {one.flicker, one.motion, one.frozen_share, one.warp_error, one.warp_coverage} == {None}
    assert two.flicker is None
    assert two.motion == pytest.approx(1.0, rel=0.05)
    assert temporal(clip[:3]).flicker is not None


@pytest.mark.parametrize(("metric", "needed"), [(flicker, 3), (motion, 2), (warp_error, 2)])
def test_single_figures_refuse_what_is_too_short_or_too_small(metric, needed, seed):
    clip = rounded(pan(seed, 1.0, 0.0))
    with pytest.raises(VideoError, match=f"at least {needed} frames.* has {needed - 1} of 128x128"):
        metric(clip[: needed - 1])
    with pytest.raises(VideoError, match="at least 16x16, this video has 13 of 15x64"):
        metric(clip[:, :64, :15])
    assert metric(clip[:needed]) >= 0


def test_single_figures_equal_those_of_all_together(seed):
    clip = rounded(swing(seed) + beat(3, 2))[:4]
    measured = temporal(clip)
    assert (flicker(clip), motion(clip), warp_error(clip)) == (measured.flicker, measured.motion, measured.warp_error)


def test_odd_sizes(seed):
    measured = temporal(rounded(pan(seed, 1.0, 0.0))[:, :53, :97])
    assert measured.motion == pytest.approx(1.0, rel=0.06)


def test_the_number_of_threads_changes_nothing(seed):
    """Figures of a 2-core laptop and of a 64-core server must be one."""
    clip = rounded(swing(seed))[:4]
    before = cv2.getNumThreads()
    try:
        results = []
        for threads in (1, 2, 5):
            cv2.setNumThreads(threads)
            results.append(temporal(clip))
    finally:
        cv2.setNumThreads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("size", [(16, 128), (128, 16), (16, 16), (17, 19)])
def test_the_smallest_sizes_that_opencv_survives(size, seed):
    """One row less and DIS flow ends the process (15x64) or raises."""
    video = rounded(pan(seed, 1.0, 0.0))[:, : size[0], : size[1]]
    assert temporal(video).motion is not None
    assert temporal(video[:, :15]).motion is None


def test_floats_are_refused():
    with pytest.raises(VideoError, match="float64"):
        temporal(np.zeros((4, 16, 16, 3)))
