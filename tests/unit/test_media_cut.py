"""Cutting an mp4 in its index."""

import numpy as np
import pytest

from sakuga.errors import VideoError
from sakuga.media import read_video, video_info, write_mp4
from sakuga.media.cut import cut_mp4


@pytest.fixture
def movie(tmp_path):
    """77 frames, each of its own brightness."""
    frames_THWC = np.zeros((77, 32, 48, 3), np.uint8) + np.arange(77, dtype=np.uint8)[:, None, None, None] * 3
    write_mp4(tmp_path / "movie.mp4", frames_THWC, 15)
    return tmp_path / "movie.mp4"


@pytest.mark.parametrize(("num_frames", "fps"), [(75, 15), (76, 15), (60, 15), (7, 15), (1, 15)])
def test_the_first_frames_stay_as_they_are(movie, num_frames, fps):
    whole, num_bytes = read_video(movie), movie.stat().st_size
    cut_mp4(movie, num_frames, fps)
    assert np.array_equal(read_video(movie), whole[:num_frames])
    assert movie.stat().st_size == num_bytes
    assert video_info(movie).duration_s == pytest.approx(num_frames / fps, abs=0.01)  # ffmpeg prints two digits


@pytest.mark.parametrize("data", [b"", b"no movie", b"\0\0\0\x10ftypisom\0\0\0\0", b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x10"])
def test_another_file_is_refused(tmp_path, data):
    (tmp_path / "other.mp4").write_bytes(data)
    with pytest.raises(VideoError, match="no edit list"):
        cut_mp4(tmp_path / "other.mp4", 1, 15)
