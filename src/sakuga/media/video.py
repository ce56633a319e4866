"""Videos in and out through the ffmpeg binary that imageio-ffmpeg ships; frames are uint8 RGB of shape THWC.

Written files are H.264 yuv420p with faststart, and equal frames give equal bytes on every machine of one architecture.
Reading decodes everything into memory, with a limit on the pixels. Audio is not known here.

Run its tests: pytest tests/unit/test_media_video.py
"""

import hashlib
import math
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from sakuga.errors import DiskFullError, OutputError, VideoError, shown
from sakuga.media.files import atomic_file

CRF = 16  # visually lossless for drawings; scores are computed on the frames before
ENCODER_THREADS = 4  # fixed, because x264's decisions depend on the number of threads
MAX_VIDEO_PIXELS = 2**30  # width x height x frames that read_video decodes: 3.2 GB, twice that while they are cut
SWS_FLAGS = "accurate_rnd+full_chroma_int+bitexact+lanczos"  # the same rounding with and without SIMD
DECODE_LIMIT_S = 600  # a hostile file may decode for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What the container says, before any frame is decoded."""

    width: int
    height: int
    fps: float
    duration_s: float


def write_mp4(path: Path, frames_THWC: np.ndarray, fps: float) -> None:
    """Writes uint8 RGB frames as H.264 yuv420p mp4 with the index first, whole or not at all.

    Raises VideoError for frames of another type or with odd sides, DiskFullError or OutputError when the write fails.
    """
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or not len(frames_THWC):
        raise VideoError(f"frames are {frames_THWC.dtype} of shape {frames_THWC.shape}; they must be uint8 of THWC RGB")
    height, width = frames_THWC.shape[1:3]
    if height % 2 or width % 2:
        raise VideoError(f"{width}x{height} has an odd side, which yuv420p cannot hold; crop it to even sides")
    with atomic_file(path) as temporary:
        run = subprocess.run(
            _encode_command(temporary, width, height, fps),
            input=np.ascontiguousarray(frames_THWC).data.cast("B"),
            capture_output=True,
            check=False,
        )
        if run.returncode != 0:
            raise encoder_error(path, run)


def read_video(path: str | Path, *, max_pixels: int = MAX_VIDEO_PIXELS, max_s: float | None = None) -> np.ndarray:
    """All frames of a video, or those of its first `max_s` seconds, as uint8 RGB of shape THWC.

    Raises VideoError when it is missing, damaged or too large.
    """
    info = video_info(path)
    too_large = VideoError(
        f"{shown(path)} is {info.width}x{info.height}, {info.duration_s:.1f} s at {info.fps:g} fps; "
        f"at most {max_pixels:,} pixels in all are taken, cut or shrink it"
    )
    if info.width * info.height * min(info.duration_s, max_s or math.inf) * info.fps > max_pixels:
        raise too_large
    # PPM frames say their own size, so that a rotated or resized stream cannot be cut at wrong places.
    output = ["-sws_flags", SWS_FLAGS, "-c:v", "ppm", "-pix_fmt", "rgb24", "-f", "image2pipe"]
    data = _decoded(path, max_s, [*output, "-fs", str(3 * max_pixels)])
    if len(data) > 3 * max_pixels:  # the stated length can be a lie; -fs ended the decoding there
        raise too_large
    return _parse_ppm_frames(data, path)


def frame_times(path: str | Path, *, max_s: float | None = None) -> np.ndarray:
    """When each frame that `read_video` gives is shown, in seconds from the first one on. Raises VideoError."""
    video_info(path)
    # The stream's own clock: the encoder's would round every time to one of a constant rate.
    text = _decoded(path, max_s, ["-enc_time_base", "demux", "-f", "framecrc"]).decode("ascii", "replace")
    clocks = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("#tb 0: ")]
    ticks = [line.split(",")[2].strip() for line in text.splitlines() if line and not line.startswith("#")]
    if not clocks or not ticks or not all(tick.lstrip("-").isdigit() for tick in ticks):
        raise VideoError(f"{shown(path)} has frames without a time; convert it to mp4")
    times = np.array([int(tick) for tick in ticks]) * float(Fraction(clocks[0]))
    if (np.diff(times) <= 0).any():
        raise VideoError(f"{shown(path)} has frames whose times do not rise; convert it to mp4")
    return times - times[0]


def _decoded(path: str | Path, max_s: float | None, output: Sequence[str]) -> bytes:
    """What ffmpeg writes for the frames of the first video stream, each of them once."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-xerror", "-nostdin", "-i", file_url(path)]
    command += ["-map", "0:v:0", "-fps_mode", "passthrough", *(["-t", f"{max_s:.6f}"] if max_s is not None else [])]
    try:
        run = subprocess.run([*command, *output, "-"], capture_output=True, check=False, timeout=DECODE_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise VideoError(f"{shown(path)} took over {DECODE_LIMIT_S} s to decode; cut or shrink it") from None
    if run.returncode != 0:
        raise VideoError(f"{shown(path)} is damaged or cut off ({_last_line(run.stderr)}); copy it again")
    return run.stdout


def video_info(path: str | Path) -> VideoInfo:
    """Size, frame rate and length as the container states them. Raises VideoError."""
    file = Path(path)
    try:
        if not file.is_file():
            raise VideoError(f"{shown(path)} does not exist or is not a file; check the path")
        if file.stat().st_size == 0:
            raise VideoError(f"{shown(path)} is empty (0 bytes); copy it again")
        reader = imageio_ffmpeg.read_frames(file_url(path))
        try:
            meta = next(reader)
        finally:
            reader.close()
    except (OSError, IndexError, RuntimeError, StopIteration) as error:
        raise VideoError(f"{shown(path)} is not a video that ffmpeg can read, or damaged; convert it to mp4") from error
    width, height = meta["source_size"]
    return VideoInfo(width=width, height=height, fps=float(meta["fps"]), duration_s=float(meta["duration"]))


def video_sha256(frames_THWC: np.ndarray) -> str:
    """sha256 of the size and the RGB frames: the identity of a conditioning video in a recipe."""
    num_frames, height, width = frames_THWC.shape[:3]
    digest = hashlib.sha256(f"RGB {width}x{height}x{num_frames}\n".encode())
    digest.update(np.ascontiguousarray(frames_THWC).data.cast("B"))
    return digest.hexdigest()


def _encode_command(target: Path, width: int, height: int, fps: float) -> list[str]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "pipe:0"]
    # Without the explicit matrix players guess by size: BT.601 for small pictures, which shifts the colours.
    command += ["-vf", f"scale=out_color_matrix=bt709:out_range=tv:flags={SWS_FLAGS},format=yuv420p"]
    command += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    command += ["-c:v", "libx264", "-preset", "medium", "-crf", str(CRF), "-threads", str(ENCODER_THREADS)]
    command += ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1", "-movflags", "+faststart"]
    return [*command, "-f", "mp4", file_url(target)]


def file_url(path: str | Path) -> str:
    """Keeps ffmpeg from taking a name such as `concat:a` or `-y` for a protocol or an option."""
    return f"file:{path}"


def encoder_error(path: Path, run: subprocess.CompletedProcess[bytes]) -> OutputError:
    # SIGXFSZ: the file reached the limit of `ulimit -f`.
    if b"No space left on device" in run.stderr or run.returncode == -signal.SIGXFSZ:
        return DiskFullError(f"no space is left to write {shown(path)}; free some, then run the same command again")
    return OutputError(f"{shown(path)} was not written: ffmpeg ended with {run.returncode} ({_last_line(run.stderr)})")


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return shown(lines[-1], 160) if lines else "no message"


def _parse_ppm_frames(data: bytes, path: str | Path) -> np.ndarray:
    """Cuts the P6 pictures that ffmpeg wrote one after the other: `P6\\nW H\\n255\\n` and the pixels."""
    frames = []
    place = 0
    while place < len(data):
        magic, size, depth = data[place : place + 40].split(b"\n", 3)[:3]
        width, height = (int(number) for number in size.split())
        start = place + len(magic) + len(size) + len(depth) + 3
        place = start + 3 * width * height
        if frames and frames[0].shape[:2] != (height, width):
            raise VideoError(f"{shown(path)} changes its size within; convert it to one size")
        frames.append(np.frombuffer(data, np.uint8, 3 * width * height, start).reshape(height, width, 3))
    if not frames:
        raise VideoError(f"{shown(path)} has no frames; convert it to mp4")
    return np.stack(frames)
