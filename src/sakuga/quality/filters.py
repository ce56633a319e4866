"""VMAF and XPSNR through the ffmpeg that imageio-ffmpeg ships.

Frames travel raw through one pipe, reference above generated video, and are split again inside ffmpeg: no lossy file,
no time stamps that could drift, no second pipe that could dead-lock. Both are turned into BT.709 YCbCr of limited range
without chroma subsampling; VMAF looks at luma only.

What the figures mean: VMAF v0.6.1 was trained on 1080p seen from three screen heights. On a 128x128 clip it ranks
renders of that size, but is lenient and not comparable with published 1080p scores. Identical videos score 97.4 to 100,
because the model gives a frame without motion 97.4; this is not patched up here.

Run: pytest tests/unit/test_quality_filters.py
"""

import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sakuga.errors import MetricError, VideoError
from sakuga.quality.fidelity import CAP_DB
from sakuga.quality.frames import Frames, check_pair

VMAF_MODEL = "vmaf_v0.6.1"
VMAF_MIN_SIDE = 32  # libvmaf crashes (SIGSEGV) at 16 and works at 17; at 32 its coarsest scale is still 4 pixels wide.
_TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vmaf:
    """Video multi-method assessment fusion, 0 to 100."""

    mean: float
    harmonic_mean: float
    """Leans towards the bad frames; of (score + 1), less 1, as libvmaf does it."""
    min: float
    per_frame: tuple[float, ...]
    model: str = VMAF_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Xpsnr:
    """Perceptually weighted PSNR (Helmrich et al. 2020, ITU-T study group 12) in dB; infinity is capped at CAP_DB."""

    y_db: float
    u_db: float
    v_db: float
    per_frame_y_db: tuple[float, ...]

    @property
    def min_db(self) -> float:
        """The worst of the three planes: the figure that FFmpeg's documentation asks to report."""
        return min(self.y_db, self.u_db, self.v_db)


def vmaf(ref_THWC: Frames, gen_THWC: Frames, fps: float = 15.0) -> Vmaf:
    """VMAF of every frame. `fps` only stamps the frames: this model knows motion per frame, not per second.

    Raises VideoError for pairs that cannot be compared or are smaller than 32 pixels, MetricError when ffmpeg fails.
    """
    check_pair(ref_THWC, gen_THWC)
    _, height, width, _ = ref_THWC.shape
    if min(height, width) < VMAF_MIN_SIDE:
        raise VideoError(f"VMAF needs frames of at least {VMAF_MIN_SIDE}x{VMAF_MIN_SIDE}, these are {width}x{height}")
    threads = min(8, os.cpu_count() or 1)
    text = _run_filter(
        ref_THWC,
        gen_THWC,
        fps,
        f"[gen][ref]libvmaf=model=version={VMAF_MODEL}:n_threads={threads}:log_fmt=json:log_path=stats",
    )
    scores = tuple(float(frame["metrics"]["vmaf"]) for frame in json.loads(text)["frames"])
    _check_count("libvmaf", len(scores), len(ref_THWC))
    return Vmaf(
        mean=math.fsum(scores) / len(scores),
        harmonic_mean=len(scores) / math.fsum(1.0 / (score + 1.0) for score in scores) - 1.0,
        min=min(scores),
        per_frame=scores,
    )


def xpsnr(ref_THWC: Frames, gen_THWC: Frames, fps: float = 15.0) -> Xpsnr:
    """XPSNR of the three planes, weighted by what the eye sees in the reference.

    The filter takes what came before the first frame for black, and so forgives errors in the first frame (12 dB in
    our tests): compare clips of one length only, and no single frames.
    Above 32 frames per second it looks at second differences in time, so `fps` counts. Under about 45x45 pixels there
    are no blocks to weight and it is the plain PSNR of each plane. Raises as `vmaf`, but takes any size.
    """
    check_pair(ref_THWC, gen_THWC)
    text = _run_filter(ref_THWC, gen_THWC, fps, "[ref][gen]xpsnr=stats_file=stats")
    frames, _, average = text.partition("XPSNR average")
    per_frame = tuple(_capped(value) for value in re.findall(r"XPSNR y:\s*(\S+)", frames))
    _check_count("xpsnr", len(per_frame), len(ref_THWC))
    planes = dict(re.findall(r"\b([yuv]):\s*(\S+)", average))
    return Xpsnr(
        y_db=_capped(planes["y"]), u_db=_capped(planes["u"]), v_db=_capped(planes["v"]), per_frame_y_db=per_frame
    )


def _capped(text: str) -> float:
    return min(CAP_DB, float(text))


def _check_count(name: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise MetricError(
            f"{name} scored {got} of {wanted} frames, so its mean would be wrong: use the binary of imageio-ffmpeg"
        )


def _ffmpeg() -> str:
    """Absolute path of ffmpeg: it runs in a folder of its own, where a relative one would be lost."""
    import imageio_ffmpeg

    try:
        found = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MetricError(f"no ffmpeg for VMAF and XPSNR ({error}): reinstall imageio-ffmpeg") from error
    return os.path.abspath(shutil.which(found) or found)


def _run_filter(ref_THWC: Frames, gen_THWC: Frames, fps: float, graph: str) -> str:
    """Run a two-input filter on [ref] and [gen]; returns what it wrote to the file `stats`."""
    num_frames, height, width, _ = ref_THWC.shape
    if not (math.isfinite(fps) and fps > 0):
        raise VideoError(f"the frame rate is {fps:g}, but VMAF and XPSNR need one above 0: name it")
    split = (
        f"[0:v]split[top][bottom];[top]crop={width}:{height}:0:0,{_TO_YUV},format=yuv444p[ref];"
        f"[bottom]crop={width}:{height}:0:{height},{_TO_YUV},format=yuv444p[gen];{graph}"
    )
    executable = _ffmpeg()
    command = [executable, "-hide_banner", "-nostats", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{2 * height}"]
    command += ["-framerate", f"{fps:g}", "-i", "pipe:0", "-lavfi", split, "-f", "null", "-"]
    with tempfile.TemporaryDirectory(prefix="sakuga-quality-") as folder, tempfile.TemporaryFile() as log:
        # In a folder of its own the filter writes to `stats`: no path has to survive the graph's escaping rules.
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                for t in range(num_frames):
                    pipe.write(np.ascontiguousarray(ref_THWC[t]).data)
                    pipe.write(np.ascontiguousarray(gen_THWC[t]).data)
        except BrokenPipeError:
            pass  # ffmpeg gave up; its exit status and its log, read below, say why
        except BaseException:
            process.kill()
            raise
        finally:
            status = process.wait()
        stats = Path(folder, "stats")
        if status == 0 and stats.is_file():
            return stats.read_text(encoding="utf-8")
        log.seek(0)
        said = log.read().decode("utf-8", "replace").strip().splitlines()
    why = said[-1] if said else "it said nothing"
    raise MetricError(
        f"ffmpeg ({executable}) could not measure this pair, exit status {status}: {why}; "
        "use the binary of imageio-ffmpeg, which has the filters libvmaf and xpsnr"
    )
