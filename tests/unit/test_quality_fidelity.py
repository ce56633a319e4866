"""PSNR and SSIM against scikit-image, known answers and the mistakes in circulation."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sakuga.errors import InputError, VideoError
from sakuga.quality import CAP_DB, psnr, ssim

SIZES = [(16, 128, 128), (3, 17, 23), (1, 64, 96), (2, 11, 11), (5, 127, 33)]


def noise(seed: int, num_frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def near(video: np.ndarray, seed: int, spread: int = 20) -> np.ndarray:
    step = np.random.default_rng(seed).integers(-spread, spread + 1, video.shape)
    return np.clip(video.astype(int) + step, 0, 255).astype(np.uint8)


def constant(value: int, num_frames: int = 4, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((num_frames, height, width, 3), value, dtype=np.uint8)


def reference_ssim(a: np.ndarray, b: np.ndarray, **more: object):
    settings = {"channel_axis": -1, "data_range": 255, "gaussian_weights": True, "sigma": 1.5}
    return structural_similarity(a, b, use_sample_covariance=False, **settings, **more)


@pytest.mark.parametrize("size", SIZES)
def test_psnr_equals_scikit_image(size, seed):
    ref = noise(seed, *size)
    gen = near(ref, seed + 1)
    ours = psnr(ref, gen)
    theirs = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(ref, gen, strict=True)]
    assert ours.per_frame_db == pytest.approx(theirs, abs=1e-9)
    assert ours.mean_db == pytest.approx(np.mean(theirs), abs=1e-9)
    assert ours.min_db == pytest.approx(min(theirs), abs=1e-9)
    assert ours.pooled_db == pytest.approx(peak_signal_noise_ratio(ref, gen, data_range=255), abs=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_ssim_equals_scikit_image(size, seed):
    ref = noise(seed, *size)
    gen = near(ref, seed + 1, spread=60)
    ours = ssim(ref, gen)
    theirs = [reference_ssim(a, b) for a, b in zip(ref, gen, strict=True)]
    assert ours.per_frame == pytest.approx(theirs, abs=1e-9)
    assert ours.mean == pytest.approx(np.mean(theirs), abs=1e-9)
    assert ours.min == min(ours.per_frame)


def test_unrelated_videos_do_not_score_28_db(seed):
    """The naive formula on uint8 wraps twice, in the difference and in the square, and flatters any video."""
    ref, gen = noise(seed, 8, 128, 128), noise(seed + 1, 8, 128, 128)
    naive_db = 10 * math.log10(255**2 / np.mean((ref - gen) ** 2))
    assert naive_db == pytest.approx(27.9, abs=0.1)
    assert psnr(ref, gen).mean_db == pytest.approx(7.75, abs=0.05)


def test_a_constant_difference_has_a_known_psnr():
    measured = psnr(constant(100), constant(110))
    assert measured.mean_db == measured.pooled_db == measured.min_db == pytest.approx(20 * math.log10(25.5), abs=1e-12)
    assert psnr(constant(0), constant(255)).mean_db == 0.0
    assert psnr(constant(255), constant(0)).mean_db == 0.0


def test_one_bad_frame_is_hidden_by_the_mean_but_not_by_pool_and_minimum():
    gen = constant(1, num_frames=16)
    gen[7] = 149
    measured = psnr(constant(0, num_frames=16), gen)
    assert measured.mean_db == pytest.approx(45.4, abs=0.05)
    assert measured.pooled_db == pytest.approx(16.7, abs=0.05)
    assert measured.min_db == measured.per_frame_db[7] == pytest.approx(4.67, abs=0.01)


def test_identical_videos_reach_the_cap_and_nothing_passes_it(seed):
    ref = noise(seed, 2, 720, 1280)
    assert psnr(ref, ref.copy()).mean_db == psnr(ref, ref).pooled_db == CAP_DB
    assert ssim(ref[:, :64, :64], ref[:, :64, :64]).mean == pytest.approx(1.0, abs=1e-12)
    off_by_one = ref.copy()
    off_by_one[0, 0, 0, 0] ^= 1  # 112 dB without the cap: one level in 2.8 million samples
    assert psnr(ref, off_by_one).min_db == CAP_DB


def test_a_grey_video_is_like_any_other():
    assert ssim(constant(128), constant(128)).mean == 1.0
    apart = ssim(constant(100), constant(200)).mean
    c1 = (0.01 * 255) ** 2
    assert apart == pytest.approx((2 * 100 * 200 + c1) / (100**2 + 200**2 + c1), abs=1e-9)


def test_views_and_strides_do_not_matter(seed):
    ref, gen = noise(seed, 6, 40, 60), noise(seed + 1, 6, 40, 60)
    view = psnr(ref[::2, ::-1, 3:, ::-1], gen[::2, ::-1, 3:, ::-1])
    assert view == psnr(ref[::2, ::-1, 3:, ::-1].copy(), gen[::2, ::-1, 3:, ::-1].copy())


def test_masked_psnr_is_that_of_the_cut_out_region(seed):
    ref, gen = noise(seed, 3, 40, 60), noise(seed + 1, 3, 40, 60)
    mask = np.zeros(ref.shape[:3], dtype=bool)
    mask[:, 5:20, 10:45] = True
    assert psnr(ref, gen, mask) == psnr(ref[:, 5:20, 10:45], gen[:, 5:20, 10:45])


def test_masked_ssim_is_the_mean_of_the_map(seed):
    ref, gen = noise(seed, 2, 40, 60), near(noise(seed, 2, 40, 60), seed, spread=80)
    mask = np.zeros(ref.shape[:3], dtype=bool)
    mask[:, 8:30, 12:44] = np.random.default_rng(seed).random((2, 22, 32)) < 0.5
    maps = [reference_ssim(a, b, full=True)[1] for a, b in zip(ref, gen, strict=True)]
    expected = [m[on].mean() for m, on in zip(maps, mask, strict=True)]
    assert ssim(ref, gen, mask).per_frame == pytest.approx(expected, abs=1e-9)


def test_a_full_mask_changes_nothing(seed):
    ref, gen = noise(seed, 2, 40, 61), noise(seed + 1, 2, 40, 61)
    full = np.ones(ref.shape[:3], dtype=bool)
    assert psnr(ref, gen, full) == psnr(ref, gen)
    assert ssim(ref, gen, full).mean == pytest.approx(ssim(ref, gen).mean, abs=1e-12)


def test_frames_without_mask_do_not_count():
    gen = constant(10)
    gen[1] = 200
    mask = np.ones(gen.shape[:3], dtype=bool)
    mask[1] = False
    measured = psnr(constant(0), gen, mask)
    assert measured.per_frame_db[1] is None
    assert measured.mean_db == measured.min_db == measured.pooled_db == psnr(constant(0), constant(10)).mean_db
    assert ssim(constant(0), gen, mask).per_frame[1] is None


def test_a_mask_that_marks_nothing_is_refused():
    mask = np.zeros((4, 32, 48), dtype=bool)
    with pytest.raises(VideoError, match="empty in every frame"):
        psnr(constant(0), constant(1), mask)
    mask[:, 0, :] = True
    assert psnr(constant(0), constant(1), mask).mean_db > 0
    with pytest.raises(VideoError, match="edge"):
        ssim(constant(0), constant(1), mask)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("ref", "gen", "said"),
    [
        (constant(0, num_frames=33), constant(0, num_frames=29), "33 frames.* 29"),
        (constant(0, width=48), constant(0, width=64), "48x32 .* 64x32"),
        (constant(0), constant(0) / np.float32(255), "float32"),
        (constant(0)[..., 0], constant(0)[..., 0], "uint8 RGB"),
        (constant(0)[:0], constant(0)[:0], "no frames"),
    ],
)
def test_pairs_that_cannot_be_compared_say_why(metric, ref, gen, said):
    with pytest.raises(InputError, match=said):
        metric(ref, gen)


def test_a_mask_of_another_shape_or_type_is_refused():
    for mask in (np.ones((4, 32, 47), dtype=bool), np.ones((4, 32, 48), dtype=np.uint8)):
        with pytest.raises(VideoError, match="mask has shape"):
            psnr(constant(0), constant(1), mask)


def test_ssim_says_the_smallest_size():
    with pytest.raises(VideoError, match="at least 11x11, these are 48x10"):
        ssim(constant(0, height=10), constant(0, height=10))
