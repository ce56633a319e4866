"""Frames on disk, every bit of them: FFV1 in Matroska, for videos that will be compared again.

`read_video` reads them as it reads all others.     Run: pytest tests/unit/test_media_lossless.py
"""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from sakuga.errors import VideoError
from sakuga.media.files import atomic_file
from sakuga.media.video import encoder_error, file_url


def write_lossless(path: Path, frames_THWC: np.ndarray, fps: float) -> None:
    """Writes uint8 RGB frames as planar RGB without loss, whole or not at all.

    Raises VideoError for frames of another type, DiskFullError or OutputError when the write fails.
    """
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or not len(frames_THWC):
        raise VideoError(f"frames are {frames_THWC.dtype} of shape {frames_THWC.shape}; they must be uint8 of THWC RGB")
    height, width = frames_THWC.shape[1:3]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "pipe:0"]
    command += ["-c:v", "ffv1", "-level", "3", "-pix_fmt", "gbrp", "-fflags", "+bitexact", "-f", "matroska"]
    with atomic_file(path) as temporary:
        run = subprocess.run(
            [*command, file_url(temporary)],
            input=np.ascontiguousarray(frames_THWC).data.cast("B"),
            capture_output=True,
            check=False,
        )
        if run.returncode != 0:
            raise encoder_error(path, run)
