"""Frames by time, buckets, and that everything of a sample is cut alike."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from sakuga.errors import DataError, VideoError
from sakuga.media import frame_times, read_video, write_mp4
from sakuga.training.clips import ClipSpec, cut, frame_buckets, frame_choice, plan_clip, size_bucket
from sakuga.training.layouts import SourceSample

SPEC = ClipSpec(width=64, height=64, num_frames=9, fps=12)


def counting(num_frames: int, width: int = 64, height: int = 64) -> np.ndarray:
    """Frame k is grey of 5k, so that a decoded frame says which one it was."""
    return np.stack([np.full((height, width, 3), 5 * index, np.uint8) for index in range(num_frames)])


def numbers(frames_THWC: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 5) for frame in frames_THWC]


@pytest.fixture
def video(tmp_path):
    def make(name: str, num_frames: int, fps: float, **size):
        write_mp4(tmp_path / name, counting(num_frames, **size), fps)
        return tmp_path / name

    return make


def sample(path, **given) -> SourceSample:
    return SourceSample(name=path.name, target=path, prompt="x", **given)


def test_24_fps_keeps_its_speed(video):
    path = video("a.mp4", 24, 24)
    plan = plan_clip(sample(path), SPEC)
    assert plan.indices == (0, 2, 4, 6, 8, 10, 12, 14, 16)
    assert plan.notes == ("resampled from 24 to 12 fps",)
    assert numbers(cut(sample(path), plan, SPEC).frames_THWC) == list(plan.indices)


@pytest.mark.parametrize(("source_fps", "fps"), [(24, 15), (30, 16), (29.97, 24), (8, 15), (15, 15), (60, 15)])
def test_chosen_frames_lie_at_their_time(source_fps, fps):
    times = np.round(np.arange(100) / source_fps, 3)  # as webm rounds them
    chosen = frame_choice(times, fps)
    assert len(chosen) == pytest.approx(100 / source_fps * fps, abs=1)
    assert np.abs(times[chosen] - np.arange(len(chosen)) / fps)[:-1].max() <= 0.5 / source_fps + 0.001
    if source_fps == fps:
        assert chosen.tolist() == list(range(100))


def test_variable_rate_is_resampled_by_its_times(video, tmp_path):
    steady, path = video("a.mp4", 48, 24), tmp_path / "variable.mp4"
    drop = "select='lt(n,12)+not(mod(n,3))'"  # every frame for half a second, then each third one
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(steady), "-vf", drop, "-fps_mode", "vfr"]
    subprocess.run([*command, str(path)], check=True)
    spec = ClipSpec(width=64, height=64, num_frames=17, fps=12)
    plan = plan_clip(sample(path), spec)
    assert "variable frame rate" in plan.notes[0] and "resampled to 12 by time" in plan.notes[0]
    shown = numbers(cut(sample(path), plan, spec).frames_THWC)
    assert np.abs(np.array(shown) - np.arange(17) * 2).max() <= 1  # one of the frames beside the moment


def test_short_clips_go_into_a_bucket_that_they_fill(video):
    plan = plan_clip(sample(video("a.mp4", 8, 12)), SPEC)
    assert plan.num_frames == 5
    assert plan.notes == ("8 frames fill a clip of 5",)
    assert frame_buckets(81) == (81, 41, 21, 9, 5)


@pytest.mark.parametrize(
    ("num_frames", "words"), [(1, "one frame; give it as a picture"), (3, "3 frames at 12 fps, and a clip needs")]
)
def test_too_short(video, num_frames, words):
    with pytest.raises(DataError, match=words):
        plan_clip(sample(video("a.mp4", num_frames, 12)), SPEC)


def test_corrupt_missing_and_no_video(video, tmp_path):
    path = video("a.mp4", 24, 24)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(VideoError, match="damaged"):
        plan_clip(sample(path), SPEC)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="not a video"):
        plan_clip(sample(tmp_path / "text.mp4"), SPEC)


def test_size_buckets():
    spec = ClipSpec(width=832, height=480, num_frames=81, fps=16)
    assert size_bucket(1920, 1080, spec) == (832, 480)
    assert size_bucket(832, 480, spec) == (832, 480)
    assert size_bucket(1080, 1920, spec) == (480, 832)
    for width, height in ((500, 500), (3000, 1000), (640, 480), (479, 833)):
        bucket = size_bucket(width, height, spec)
        assert bucket[0] % 16 == bucket[1] % 16 == 0
        assert 0.8 * 832 * 480 <= bucket[0] * bucket[1] <= 832 * 480
    assert size_bucket(128, 128, ClipSpec(width=128, height=128, num_frames=33, fps=15)) == (128, 128)


def test_a_picture_is_scaled_and_cut_evenly(tmp_path):
    picture = np.zeros((100, 140, 3), np.uint8)
    picture[:, 20:120] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    spec = ClipSpec(width=64, height=64, num_frames=9, fps=12, size_multiple=64)
    plan = plan_clip(sample(tmp_path / "a.png"), spec)
    assert (plan.width, plan.height, plan.num_frames) == (64, 64, 1)
    assert plan.notes == ("140x100 scaled and cut to 64x64",)
    frames = cut(sample(tmp_path / "a.png"), plan, spec).frames_THWC
    assert frames.shape == (1, 64, 64, 3) and frames[0, :, 4:-4].min() > 190


def test_all_of_a_sample_is_cut_alike(video, tmp_path):
    """Target at 24 fps, control frame for frame with another clock, mask at 12 fps, layers by the target's frames."""
    target, control, mask = video("a.mp4", 24, 24), video("c.mp4", 24, 25), video("m.mp4", 12, 12, width=128, height=64)
    layers = np.zeros((24, 64, 64), np.uint8)
    layers[:, :, 32:] = np.arange(24)[:, None, None]
    np.savez_compressed(tmp_path / "layers.npz", layers_THW=layers)
    whole = sample(target, videos={"control_video": control, "vace_mask": mask}, layers=tmp_path / "layers.npz")
    plan = plan_clip(whole, SPEC)
    clip = cut(whole, plan, SPEC, ("control_video", "vace_mask"))
    assert numbers(clip.videos["control_video"]) == numbers(clip.frames_THWC) == list(range(0, 18, 2))
    assert numbers(clip.videos["vace_mask"]) == list(range(9))
    assert clip.videos["vace_mask"].shape == clip.frames_THWC.shape
    assert clip.layers_THW[:, 0, -1].tolist() == list(range(0, 18, 2)) and not clip.layers_THW[:, :, :32].any()
    assert not cut(whole, plan, SPEC).videos


def test_what_goes_along_is_long_enough(video, tmp_path):
    short = sample(video("a.mp4", 24, 24), videos={"control_video": video("c.mp4", 5, 24)})
    with pytest.raises(DataError, match="control_video has 2 frames at 12 fps and the clip 9"):
        cut(short, plan_clip(short, SPEC), SPEC, ("control_video",))
    np.savez_compressed(tmp_path / "layers.npz", layers_THW=np.zeros((3, 64, 64), np.uint8))
    layered = sample(video("b.mp4", 24, 24), layers=tmp_path / "layers.npz")
    with pytest.raises(DataError, match="one index a pixel"):
        cut(layered, plan_clip(layered, SPEC), SPEC)


def test_only_the_beginning_of_a_long_video_is_read(video):
    path = video("a.mp4", 48, 24)
    assert len(frame_times(path)) == len(read_video(path)) == 48
    assert len(frame_times(path, max_s=0.5)) == len(read_video(path, max_s=0.5)) == 12
    assert np.allclose(np.diff(frame_times(path)), 1 / 24)
