"""Two real `sakuga bulk` drivers on one output folder: the second is told so, the first ends as if alone.

Run: pytest -m slow tests/proof/test_bulk_twice.py
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]

START_LIMIT_S = 300  # torch, diffsynth and a Ray head on a busy laptop
RUN_LIMIT_S = 900


def wait_until_locked(out: Path, driver: subprocess.Popen) -> None:
    """Until `driver` holds the folder: it writes its pid into the lock file then."""
    limit = time.monotonic() + START_LIMIT_S
    lock = out / ".lock"
    while not (lock.is_file() and str(driver.pid) in lock.read_text()):
        assert driver.poll() is None, "the first driver ended before it held the folder"
        assert time.monotonic() < limit, "the first driver never held the folder"
        time.sleep(0.05)


def test_the_second_driver_is_refused(tmp_path):
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "out"
    rows = [{"id": name, "prompt": "a dancer spins", "num_frames": 5, "num_inference_steps": 2} for name in "abc"]
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = [str(Path(sys.executable).parent / "sakuga"), "bulk", str(manifest), "--out", str(out), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        try:
            wait_until_locked(out, first)
            second = subprocess.run(command, capture_output=True, text=True, timeout=START_LIMIT_S, check=False)
            printed, _ = first.communicate(timeout=RUN_LIMIT_S)
        finally:
            first.kill()
    error = json.loads(second.stdout.splitlines()[-1])["error"]
    assert (second.returncode, error["code"]) == (4, "E_BUSY")
    assert f"pid {first.pid}" in error["message"]
    assert (first.returncode, json.loads(printed.splitlines()[-1])["done"]) == (0, 3)
    assert sorted(path.name for path in out.glob("*.mp4")) == ["a.mp4", "b.mp4", "c.mp4"]
