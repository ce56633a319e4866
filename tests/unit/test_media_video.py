"""Videos in and out: what is written is H.264 that every player takes, and comes back nearly the same."""

import os
import resource
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from sakuga.errors import DiskFullError, OutputError, VideoError
from sakuga.media import read_video, video, video_info, video_sha256, write_mp4


def moving_gradient(num_frames: int = 17, height: int = 64, width: int = 96) -> np.ndarray:
    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([128 + 100 * np.sin((x + 3 * t) / 20), 2 * y, 60 + 5 * t], axis=-1).astype(np.uint8)


def boxes(data: bytes) -> list[str]:
    """The names of the top boxes of an mp4 in their order."""
    names, place = [], 0
    while place < len(data):
        names.append(data[place + 4 : place + 8].decode())
        place += int.from_bytes(data[place : place + 4], "big")
    return names


@pytest.fixture
def mp4(tmp_path):
    write_mp4(tmp_path / "a.mp4", moving_gradient(), 15)
    return tmp_path / "a.mp4"


def test_frames_come_back(mp4):
    frames = read_video(mp4)
    assert frames.dtype == np.uint8
    assert frames.shape == (17, 64, 96, 3)
    difference = frames.astype(int) - moving_gradient()
    assert np.abs(difference).mean() < 1.5  # crf 16 and half the colour resolution
    # A wrong matrix or range on one of the two ways shifts whole channels by 5 and more.
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 1.0


@pytest.mark.parametrize("colour", [(200, 30, 60), (10, 240, 20), (255, 255, 255), (0, 0, 0)])
def test_colours_are_kept(tmp_path, colour):
    write_mp4(tmp_path / "a.mp4", np.full((5, 32, 32, 3), colour, np.uint8), 15)
    assert np.abs(read_video(tmp_path / "a.mp4").astype(int) - colour).max() <= 3


def test_the_container(mp4):
    names = boxes(mp4.read_bytes())
    assert names.index("moov") < names.index("mdat")
    reader = imageio_ffmpeg.read_frames(str(mp4))
    meta = next(reader)
    reader.close()
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p(tv, bt709")
    info = video_info(mp4)
    assert (info.width, info.height, info.fps) == (96, 64, 15)
    assert info.duration_s == pytest.approx(17 / 15, abs=0.01)  # ffmpeg prints hundredths


def test_equal_frames_give_equal_bytes(mp4, tmp_path):
    write_mp4(tmp_path / "b.mp4", moving_gradient().copy(order="F"), 15)
    assert (tmp_path / "b.mp4").read_bytes() == mp4.read_bytes()


@pytest.mark.parametrize("name", ["-y.mp4", "pipe:1.mp4", "with space & 妖精 %03d.mp4", "a'b.mp4"])
def test_names_are_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_mp4(tmp_path / name, moving_gradient(5), 15)
    assert len(read_video(name)) == 5
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((3, 32, 32, 4), np.uint8),
        np.zeros((3, 32, 32, 3), np.float32),
        np.zeros((3, 31, 32, 3), np.uint8),
    ],
)
def test_frames_that_are_no_video(tmp_path, frames):
    with pytest.raises(VideoError):
        write_mp4(tmp_path / "a.mp4", frames, 15)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_in_the_encoder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DiskFullError, match="no space is left"):
            write_mp4(tmp_path / "a.mp4", noise, 15)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_the_encoders_words_for_a_full_disk(tmp_path):
    command = video._encode_command("/dev/full", 64, 64, 15)
    run = subprocess.run(command, input=bytes(64 * 64 * 3 * 9), capture_output=True, check=False)
    assert run.returncode != 0
    assert isinstance(video.encoder_error(tmp_path / "a.mp4", run), DiskFullError)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match=r"a\.mp4") as caught:
        write_mp4(tmp_path / "none" / "a.mp4", moving_gradient(5), 15)
    assert not isinstance(caught.value, DiskFullError)


def test_videos_that_cannot_be_read(tmp_path, mp4):
    with pytest.raises(VideoError, match="does not exist"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="not a file"):
        read_video(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="0 bytes"):
        read_video(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match="not a video"):
        read_video(tmp_path / "text.mp4")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.98])
def test_a_truncated_video(tmp_path, mp4, part):
    data = mp4.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(VideoError, match="damaged"):
        read_video(tmp_path / "cut.mp4")


def test_a_video_over_the_limit(tmp_path, mp4):
    with pytest.raises(VideoError, match="cut or shrink"):
        read_video(mp4, max_pixels=96 * 64 * 16)
    # A raw stream states no length: the limit must hold while it is decoded.
    raw = tmp_path / "a.h264"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(mp4), "-c", "copy", str(raw)]
    subprocess.run(command, check=True)
    assert len(read_video(raw)) == 17
    with pytest.raises(VideoError, match="cut or shrink"):
        read_video(raw, max_pixels=96 * 64 * 8)


def test_the_hash_is_of_frames_and_size():
    frames = moving_gradient()
    assert video_sha256(frames) == video_sha256(frames.copy(order="F"))
    assert video_sha256(frames) != video_sha256(frames[:-1])
    assert video_sha256(frames) != video_sha256(frames.reshape(17, 96, 64, 3))
