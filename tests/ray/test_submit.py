"""The main job for real: a head of its own, jobs/render.py submitted to it, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from sakuga.errors import BusyError, ClusterError, ManifestError
from sakuga.farm.cluster import free_ports, local_head, wait_until_ready
from sakuga.farm.lock import folder_lock

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SMALL = ("--width", "32", "--height", "32", "--frames", "5", "--steps", "2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from sakuga.wan.mini import random_weights

    return random_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def head():
    """A head for all tests here, in an unkind environment; at the end nothing of it may be left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # somebody's cluster: whatever goes there fails
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
        patch.delenv("OMP_NUM_THREADS", raising=False)  # set, it would hide that Ray sets it to 1 for an actor
        yield from _head()


def _head():
    with local_head() as head:
        wait_until_ready(head)
        yield head
        started = psutil.Process(head.process.pid).children(recursive=True)
        assert len(started) > 3
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []
    assert not head.log_path.parent.exists()


@pytest.fixture
def submit(head, weights):
    from sakuga.farm.submit import run_submitted

    def call(manifest, out, *options):
        return run_submitted(head.dashboard_url, manifest, out, [*SMALL, "--weights", str(weights), *options])

    return call


def test_a_submitted_manifest_with_a_bad_row(submit, manifest, tmp_path):
    from sakuga.media import video_info

    path = manifest({"prompt": "a dance", "id": "good"}, {"prompt": "a dance", "num_frames": 6})
    summary = submit(path, tmp_path / "out", "--num-threads", "1")
    assert (summary.done, summary.failed, summary.exit_code) == (1, 1, 1)
    assert summary.errors == {"E_GEOMETRY": 1}
    assert set(summary.seconds) == {"encode", "denoise", "decode", "total"}
    info = video_info(tmp_path / "out" / "good.mp4")
    assert (info.width, info.height) == (32, 32)
    receipt = json.loads((tmp_path / "out" / "good.json").read_text())
    assert receipt["recipe"]["num_inference_steps"] == 2
    assert receipt["num_threads"] == 1
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert results[0]["key"] == receipt["key"]

    again = submit(path, tmp_path / "out")
    assert (again.done, again.skipped, again.failed) == (0, 1, 1)


def test_errors_of_the_job_keep_their_class(submit, manifest, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with folder_lock(out), pytest.raises(BusyError, match=f"pid {os.getpid()}"):
        submit(manifest("a dance"), out)
    with pytest.raises(ManifestError, match="empty"):
        submit(manifest(), out)


@pytest.fixture
def submit_by_hand(head, weights):
    """`ray job submit` as the README says it: from the checkout, which Ray copies by .rayignore."""
    from sakuga import settings
    from sakuga.farm.cluster import RAY_ENVIRONMENT

    environment = settings.child_environment({**RAY_ENVIRONMENT, **dict.fromkeys(settings.RAY_REDIRECTIONS)})

    def call(path, out):
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.dashboard_url),
            *("--working-dir", ".", "--", sys.executable, "jobs/render.py", str(path), "--out", str(out)),
            *(*SMALL, "--weights", str(weights)),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)

    return call


def test_the_command_line_of_ray_submits_it(submit_by_hand, manifest, tmp_path):
    """With the exit code of a run in which a row failed."""
    from sakuga import settings

    done = submit_by_hand(
        manifest({"prompt": "a dance", "id": "good"}, {"prompt": "a dance", "num_frames": 6}), tmp_path / "out"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert '"E_GEOMETRY": 1' in done.stdout
    receipt = json.loads((tmp_path / "out" / "good.json").read_text())
    assert receipt["num_threads"] == settings.usable_cores()


def test_a_job_refuses_an_output_that_would_be_lost(submit_by_hand, manifest):
    done = submit_by_hand(manifest({"prompt": "a dance"}), "out/dancers")
    assert done.returncode != 0
    assert "error E_OUTPUT: --out is 'out/dancers'" in done.stdout


def test_ctrl_c_stops_the_job_and_says_how_to_go_on(submit, manifest, tmp_path):
    out = tmp_path / "out"

    def interrupt_when_rendering():
        limit = time.monotonic() + 100
        while '"denoise"' not in _text(out / "progress.jsonl") and time.monotonic() < limit:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    path = manifest({"prompt": "a dance", "num_inference_steps": 500})
    thread = threading.Thread(target=interrupt_when_rendering)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        submit(path, out)
    thread.join()
    assert json.loads((out / "summary.json").read_text())["not_run"] == 1
    with folder_lock(out):  # its holder is gone
        pass


def test_a_head_that_cannot_start_says_so(monkeypatch):
    from sakuga.farm import cluster

    taken = free_ports(1)[0]
    monkeypatch.setattr(cluster, "free_ports", lambda count: [taken] * count)
    with local_head() as head, pytest.raises(ClusterError, match="ended at its start"):
        wait_until_ready(head)
    assert head.process.poll() is not None
    shutil.rmtree(head.log_path.parent)  # kept, as nobody asked it to end


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv on this machine")
def test_a_head_ends_with_its_owner_however_that_dies():
    code = (
        "import sys; from sakuga.farm.cluster import local_head, wait_until_ready\n"
        "with local_head() as head:\n"
        "    wait_until_ready(head); print(head.process.pid, head.log_path.parent, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, temp_dir = owner.stdout.readline().split()
        started = [psutil.Process(int(pid)), *psutil.Process(int(pid)).children(recursive=True)]
        owner.kill()
    _, alive = psutil.wait_procs(started, timeout=30)
    shutil.rmtree(temp_dir)
    assert alive == []


def _text(path):
    return path.read_text() if path.exists() else ""
