"""Lossless videos: every bit comes back."""

import numpy as np
import pytest

from sakuga.errors import VideoError
from sakuga.media import read_video
from sakuga.media.lossless import write_lossless


@pytest.mark.parametrize("shape", [(3, 32, 48, 3), (2, 17, 31, 3), (1, 16, 16, 3)])
def test_every_bit_comes_back(tmp_path, shape):
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_lossless(tmp_path / "a.mkv", frames, 15)
    assert np.array_equal(read_video(tmp_path / "a.mkv"), frames)


def test_other_frames_are_refused(tmp_path):
    with pytest.raises(VideoError, match="must be uint8 of THWC RGB"):
        write_lossless(tmp_path / "a.mkv", np.zeros((2, 8, 8, 3), dtype=np.float32), 15)
    assert not list(tmp_path.iterdir())
