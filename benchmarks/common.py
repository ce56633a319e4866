"""What every benchmark states about where it ran, and how it prints its result.

Run: pytest tests/unit/test_benchmarks.py
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch


def print_result(result: dict[str, object], *, as_json: bool) -> None:
    """One JSON object as the last line of stdout; unless `as_json`, a readable form on stderr before it.

    Raises ValueError for a NaN or an infinity in the result, which no JSON reader could parse.
    """
    if not as_json:
        print(json.dumps(result, indent=2), file=sys.stderr)
    print(json.dumps(result, allow_nan=False), flush=True)


def machine_facts() -> dict[str, object]:
    """Command, commit, machine and date, as every file in `results/` has them."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _commit() -> str:
    """Short hash of HEAD, with a + when the tree differs from it; 'unknown' outside a checkout."""
    root = Path(__file__).parents[1]

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)

    head = git("rev-parse", "--short", "HEAD")
    if head.returncode != 0:
        return "unknown"
    return head.stdout.strip() + ("+" if git("status", "--porcelain", "--untracked-files=no").stdout.strip() else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
