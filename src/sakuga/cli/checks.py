"""The checks of `sakuga doctor`: one function for each thing that can be wrong with a machine.

A check looks and reports; it repairs nothing and starts nothing. It never raises for what it looks for: a broken
torch is a finding, not an error of the doctor.     Run: pytest tests/unit/test_doctor.py
"""

import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sakuga import settings
from sakuga.cli.upload import UPLOAD_LIMIT_BYTES, measure_upload
from sakuga.recipe import ATTENTIONS

logger = logging.getLogger(__name__)

GIB = 2**30
MIN_FREE_BYTES = 2 * GIB
MIN_MEMORY_BYTES = 3 * GIB  # a worker that imports torch and diffsynth takes 0.8 GB, Ray and its dashboard 0.7 GB
MIN_OPEN_FILES = 4096
SQLITE_FIXED = (3, 51, 3)
RAY_PORTS = (8265, 10001)
"""Dashboard with the job API, and Ray client, where Ray puts them by default."""
PORT_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTENING = "0A"
LOOPBACK_ENDINGS = ("0100007F", "00000000000000000000000001000000")
"""127.0.0.1 (also as ::ffff:127.0.0.1) and ::1, as the kernel writes them."""
FILTERS = ("libvmaf", "xpsnr", "ssim", "psnr")
REQUIRED = ("torch", "torchvision", "diffsynth", "ray", "xfuser", "transformers", "safetensors", "imageio-ffmpeg")
OPTIONAL = {
    "flash_attn_interface": "FlashAttention 3, attention 'flash3'",
    "flash_attn": "FlashAttention 4, attention 'flash4'",
    "xformers": "attention 'xformers'",
    "sageattention": "attention 'sage' (lossy, CUDA only)",
    "torchao": "quantized weights",
    "bitsandbytes": "4-bit weights",
    "optuna": "Optuna searches",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding."""

    name: str
    status: str
    """"ok", "note" (nothing is wrong, but know it), "warn" (something will not work) or "fail" (rendering will not)."""
    detail: str
    advice: str = ""
    """What to do about it; empty when there is nothing to do."""


def run_checks(working_dir: Path) -> list[Check]:
    """All checks, in the order in which they are shown."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", check_python),
        *((name, partial(check_package, name)) for name in REQUIRED),
        ("torchvision imports", check_torchvision),
        ("gpu", check_device),
        *((f"attention {name}", partial(check_attention, name)) for name in ATTENTIONS if name != "auto"),
        *((f"optional {name}", partial(check_optional, name, use)) for name, use in OPTIONAL.items()),
        ("embedded weights", check_weights),
        ("ffmpeg", check_ffmpeg),
        ("cpus", check_cpus),
        ("memory", check_memory),
        ("disk", partial(check_disk, working_dir)),
        ("open files", check_open_files),
        ("working dir upload", partial(check_upload, working_dir)),
        ("ray auth", check_ray_auth),
        ("sqlite", check_sqlite),
        ("chromium", check_chromium),
    ]
    return [_finding(name, check) for name, check in checks]


def _finding(name: str, check: Callable[[], Check]) -> Check:
    """What the check found; that it could not even look, with the reason, is a finding too."""
    try:
        return check()
    except Exception as error:  # a package may be broken in any way, and the other checks still count
        logger.debug("check %s", name, exc_info=True)
        reason = (str(error).strip() or "no message").split("\n", 1)[0]
        detail = f"the check itself failed: {type(error).__name__}: {reason}"
        return Check(name=name, status="fail", detail=detail, advice="mend what it names, or run `make setup` again")


def check_python() -> Check:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] < (3, 14):
        return Check(name="python", status="ok", detail=version)
    return Check(name="python", status="fail", detail=version, advice="Sakuga needs Python 3.10 to 3.13")


def check_package(name: str) -> Check:
    try:
        return Check(name=name, status="ok", detail=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name=name, status="fail", detail="not installed", advice="run `make setup`")


def check_torchvision() -> Check:
    """A CPU build of torch beside the usual torchvision installs well and fails at import."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        detail = str(error).split("\n", 1)[0]
        advice = "torch and torchvision come from different builds; install both from the same index"
        return Check(name="torchvision imports", status="fail", detail=detail, advice=advice)
    return Check(name="torchvision imports", status="ok", detail="yes")


def check_device() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check(name="gpu", status="note", detail="no CUDA device; everything runs on the CPU, slowly")
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    detail = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in found)
    return Check(name="gpu", status="ok", detail=f"{detail}; CUDA {torch.version.cuda}")


def check_attention(name: str) -> Check:
    import torch

    from sakuga.errors import AttentionError
    from sakuga.wan.attention import check_attention as check_kernel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    label = f"attention {name}"
    try:
        check_kernel(name, device=device, head_dim=128, dtype=torch.bfloat16)
    except AttentionError as error:
        return Check(name=label, status="note", detail=f"not usable: {error.message}")
    return Check(name=label, status="ok", detail=f"usable on {device.type}")


def check_optional(name: str, use: str) -> Check:
    present = importlib.util.find_spec(name) is not None
    detail = f"{'installed' if present else 'absent'}; for {use}"
    return Check(name=f"optional {name}", status="ok" if present else "note", detail=detail)


def check_weights() -> Check:
    """The embedded weights are there, and each file is the one that the model's card.json names."""
    from sakuga.wan.mini import mini_dir
    from sakuga.wan.weights import file_sha256

    name, again = "embedded weights", "install the package again"
    card = mini_dir() / "card.json"
    if not card.is_file():
        return Check(name=name, status="fail", detail=f"{card} is missing", advice=again)
    expected: dict[str, str] = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    for file, sha256 in expected.items():
        path = card.parent / file
        if not path.is_file():
            return Check(name=name, status="fail", detail=f"{path} is missing", advice=again)
        if file_sha256(path) != sha256:
            return Check(name=name, status="fail", detail=f"{path} is not the file of the card", advice=again)
    return Check(name=name, status="ok", detail=f"{len(expected)} files, sha256 as in card.json")


def check_ffmpeg() -> Check:
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        listing = _listing(program, "-filters") + _listing(program, "-encoders")
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return Check(name="ffmpeg", status="fail", detail=str(error), advice="install imageio-ffmpeg again")
    missing = [word for word in (*FILTERS, "libx264") if f" {word} " not in listing]
    if "libx264" in missing:
        return Check(
            name="ffmpeg", status="fail", detail=f"{program} has no libx264", advice="unset IMAGEIO_FFMPEG_EXE"
        )
    if missing:
        advice = "these metrics cannot be computed; unset IMAGEIO_FFMPEG_EXE to use the bundled ffmpeg"
        return Check(name="ffmpeg", status="warn", detail=f"without {', '.join(missing)}", advice=advice)
    return Check(name="ffmpeg", status="ok", detail=f"{imageio_ffmpeg.get_ffmpeg_version()} with {', '.join(FILTERS)}")


def _listing(program: str, what: str) -> str:
    done = subprocess.run(
        [program, "-hide_banner", what],
        capture_output=True,
        check=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    return done.stdout


def check_cpus() -> Check:
    usable = settings.usable_cores()
    return Check(name="cpus", status="ok", detail=f"{usable} usable of {os.cpu_count()}")


def check_memory() -> Check:
    total = memory_bytes()
    detail = f"{total / GIB:.1f} GiB"
    if total < MIN_MEMORY_BYTES:
        advice = f"a submitted job needs {MIN_MEMORY_BYTES // GIB} GiB; `sakuga render` needs less"
        return Check(name="memory", status="warn", detail=detail, advice=advice)
    return Check(name="memory", status="ok", detail=detail)


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or a container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free in {folder}"
    if free < MIN_FREE_BYTES:
        return Check(name="disk", status="warn", detail=detail, advice="Ray spills and videos may fill it; make room")
    return Check(name="disk", status="ok", detail=detail)


def check_open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MIN_OPEN_FILES:
        advice = f"`ulimit -n {min(hard, 65536) if hard > 0 else 65536}` before Ray starts with many workers"
        return Check(name="open files", status="warn", detail=f"limit {soft}", advice=advice)
    return Check(name="open files", status="ok", detail=f"limit {soft}")


def check_upload(folder: Path) -> Check:
    """What `ray job submit --working-dir .` would pack here."""
    name, upload = "working dir upload", measure_upload(folder)
    least = "" if upload.is_complete else "at least "
    detail = f"{least}{upload.size_bytes / 2**20:.0f} MiB of {UPLOAD_LIMIT_BYTES // 2**20} MiB"
    if upload.size_bytes > UPLOAD_LIMIT_BYTES:
        advice = f"add to .rayignore what the job does not need; the largest: {', '.join(upload.largest)}"
        return Check(name=name, status="warn", detail=detail, advice=advice)
    if not upload.is_complete:
        return Check(name=name, status="note", detail=f"{detail}; too many files to count all")
    return Check(name=name, status="ok", detail=detail)


def check_ray_auth() -> Check:
    """Whoever reaches the job API runs code, so it is private or asks for a token."""
    from sakuga import settings

    mode = settings.ray_auth_mode()
    if mode == "token":
        return Check(name="ray auth", status="ok", detail="RAY_AUTH_MODE=token")
    public = [port for port in RAY_PORTS if port in public_ports()]
    if public:
        return Check(
            name="ray auth",
            status="fail",
            detail=f"port {public[0]} listens beyond this machine and RAY_AUTH_MODE is not token",
            advice="whoever reaches it runs code here: bind Ray to 127.0.0.1, or set RAY_AUTH_MODE=token everywhere",
        )
    if mode == "disabled":
        advice = "fine on a laptop; on a network set RAY_AUTH_MODE=token"
        return Check(name="ray auth", status="note", detail="RAY_AUTH_MODE=disabled", advice=advice)
    detail = "RAY_AUTH_MODE is not set: a local ray.init() writes a token that other shells then miss"
    return Check(name="ray auth", status="note", detail=detail, advice="set it to token, or to disabled on a laptop")


def public_ports() -> set[int]:
    """Ports on which some process of this machine listens on more than loopback; Linux only, elsewhere empty."""
    found: set[int] = set()
    for table in PORT_TABLES:
        if not table.is_file():
            continue
        for line in table.read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, port = local.partition(":")
            if state == LISTENING and not address.endswith(LOOPBACK_ENDINGS):
                found.add(int(port, 16))
    return found


def check_sqlite() -> Check:
    version = tuple(int(part) for part in sqlite3.sqlite_version.split("."))
    if version < SQLITE_FIXED:
        detail = f"{sqlite3.sqlite_version}, older than 3.51.3: two processes may corrupt one database in WAL mode"
        return Check(name="sqlite", status="note", detail=detail, advice="let one process own a database")
    return Check(name="sqlite", status="ok", detail=sqlite3.sqlite_version)


def check_chromium() -> Check:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        return Check(name="chromium", status="note", detail="absent; only the tests of web pages use it, they skip")
    return Check(name="chromium", status="ok", detail=program)
