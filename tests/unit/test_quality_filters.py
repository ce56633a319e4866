"""VMAF and XPSNR: known answers, the right order of the inputs, the same figures as two separate files."""

import json
import math
import os
import stat
import subprocess

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from sakuga.errors import MetricError, VideoError
from sakuga.quality import CAP_DB, evaluate_pair, vmaf, xpsnr


def moving(seed: int, num_frames: int = 5, height: int = 96, width: int = 128) -> np.ndarray:
    """Smooth coloured texture that pans by two pixels a frame."""
    field = np.random.default_rng(seed).standard_normal((height, width + 2 * num_frames, 3)).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), 2)
    field = np.clip(128 + 45 * field / field.std(), 0, 255).astype(np.uint8)
    return np.stack([field[:, 2 * t : 2 * t + width] for t in range(num_frames)])


def noisy(video: np.ndarray, seed: int, sd: float) -> np.ndarray:
    return np.clip(video + np.random.default_rng(seed).normal(0, sd, video.shape), 0, 255).astype(np.uint8)


def blurred(video: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in video])


def test_identical_videos(seed):
    video = moving(seed)
    scores = vmaf(video, video).per_frame
    assert len(scores) == len(video)
    assert min(scores) >= 97.4 and max(scores) == 100.0
    measured = xpsnr(video, video)
    assert measured.y_db == measured.min_db == CAP_DB
    assert measured.per_frame_y_db == (CAP_DB,) * len(video)


def test_more_noise_scores_less(seed):
    video = moving(seed)
    scores = [
        (vmaf(video, noisy(video, seed, sd)).mean, xpsnr(video, noisy(video, seed, sd)).y_db) for sd in (4, 12, 40)
    ]
    for figures in zip(*scores, strict=True):
        assert list(figures) == sorted(figures, reverse=True)
    assert scores[0][0] - scores[2][0] > 20


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 96, 128), (2, 97, 131), (3, 33, 63), (4, 32, 32)])
def test_short_and_odd_videos(num_frames, height, width, seed):
    video = moving(seed, num_frames, height, width)
    bad = noisy(video, seed, 10)
    scores = vmaf(video, bad)
    assert len(scores.per_frame) == num_frames
    assert 0 < scores.min <= scores.harmonic_mean <= scores.mean + 1e-9 < 100
    assert 5 < xpsnr(video, bad).min_db < 50


def test_xpsnr_of_tiny_frames_is_the_luma_psnr():
    """Under one block there are no weights: BT.709 of limited range takes grey 100 and 110 to luma 102 and 110."""
    dark, light = (np.full((3, 16, 16, 3), level, dtype=np.uint8) for level in (100, 110))
    measured = xpsnr(dark, light)
    assert measured.y_db == pytest.approx(10 * math.log10(255**2 / 8**2), abs=1e-3)
    assert measured.u_db == measured.v_db == CAP_DB
    assert measured.min_db == measured.y_db


def test_luma_is_that_of_bt709():
    """Green weighs 0.7152: BT.601 would give 145 and 33.6 dB here."""
    green, black = np.zeros((1, 16, 16, 3), dtype=np.uint8), np.zeros((1, 16, 16, 3), dtype=np.uint8)
    green[..., 1] = 255
    luma = round(0.7152 * 219)
    assert xpsnr(black, green).y_db == pytest.approx(10 * math.log10(255**2 / luma**2), abs=0.05)


def test_the_reference_is_the_reference(seed):
    """Both are asymmetric: blur costs VMAF, sharpness does not; texture of the reference hides errors from XPSNR."""
    sharp = moving(seed)
    soft = blurred(sharp)
    assert vmaf(sharp, soft).mean < vmaf(soft, sharp).mean - 10
    flat = np.full_like(sharp, 128)
    rough = noisy(flat, seed, 20)
    assert xpsnr(flat, rough).y_db < xpsnr(rough, flat).y_db - 3


def test_figures_equal_those_of_two_separate_files(seed, tmp_path):
    """The one-pipe way against the usual one: two raw files, two inputs."""
    ref = moving(seed, 4, 97, 131)
    gen = noisy(ref, seed, 12)
    (tmp_path / "ref.rgb").write_bytes(ref.tobytes())
    (tmp_path / "gen.rgb").write_bytes(gen.tobytes())
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    for name in ("gen", "ref"):
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "131x97", "-r", "15", "-i", f"{name}.rgb"]
    to_yuv = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
    graph = f"[0:v]{to_yuv},format=yuv444p[g];[1:v]{to_yuv},format=yuv444p[r];[g][r]libvmaf=log_fmt=json:log_path=out"
    subprocess.run([*command, "-lavfi", graph, "-f", "null", "-"], cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    theirs = [frame["metrics"]["vmaf"] for frame in json.loads((tmp_path / "out").read_text())["frames"]]
    assert vmaf(ref, gen).per_frame == pytest.approx(theirs, abs=1e-6)


def test_only_xpsnr_knows_the_frame_rate(seed):
    video = moving(seed)
    bad = noisy(video, seed, 12)
    assert vmaf(video, bad, fps=15) == vmaf(video, bad, fps=60)
    assert xpsnr(video, bad, fps=15) == xpsnr(video, bad, fps=30)
    assert xpsnr(video, bad, fps=15).y_db != xpsnr(video, bad, fps=60).y_db


def test_the_sizes_at_which_libvmaf_crashes_are_refused(seed):
    video = moving(seed, 2, 16, 64)
    with pytest.raises(VideoError, match="at least 32x32, these are 64x16"):
        vmaf(video, video)


@pytest.mark.parametrize("fps", [0, -15, math.nan, math.inf])
def test_impossible_frame_rates_are_refused(fps, seed):
    with pytest.raises(VideoError, match="frame rate"):
        xpsnr(moving(seed), moving(seed), fps)


def fake_ffmpeg(folder, script: str) -> str:
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo \"No such filter: 'libvmaf'\" >&2; exit 8", "exit status 8: No such filter: 'libvmaf'"),
        ("cat > /dev/null", "exit status 0: it said nothing"),
        ("kill -SEGV $$", "exit status -11"),
    ],
)
def test_an_ffmpeg_that_cannot_is_an_error_and_a_note(script, said, tmp_path, monkeypatch, seed):
    """The first one also closes the pipe before the 370 kB are written: more than a pipe holds."""
    path = fake_ffmpeg(tmp_path, script)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: path)
    video = moving(seed)
    with pytest.raises(MetricError, match=said) as caught:
        vmaf(video, video)
    assert caught.value.code == "E_METRIC"
    report = evaluate_pair(video, video)
    assert report.vmaf is None and report.xpsnr is None and report.psnr.mean_db == CAP_DB
    assert [note.partition(":")[0] for note in report.notes] == ["vmaf", "xpsnr"]


def test_a_filter_that_skips_frames_is_an_error(tmp_path, monkeypatch, seed):
    one = json.dumps({"frames": [{"metrics": {"vmaf": 50.0}}]})
    path = fake_ffmpeg(tmp_path, f"cat > /dev/null; echo '{one}' > stats")
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: path)
    with pytest.raises(MetricError, match="1 of 5 frames"):
        vmaf(moving(seed), moving(seed))


def test_no_ffmpeg_at_all_is_an_error(monkeypatch, seed):
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(MetricError, match="No ffmpeg exe could be found"):
        xpsnr(moving(seed), moving(seed))


def test_a_relative_path_to_ffmpeg_works(monkeypatch, seed):
    """The filter runs in a folder of its own, where the path would lead nowhere."""
    path = os.path.relpath(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: path)
    assert xpsnr(moving(seed), moving(seed)).y_db == CAP_DB
