"""A Ray head of our own on this machine: started on free ports, used, and ended with all that belongs to it.

Several clusters can live on one machine beside each other: every port is free at the start, worker ports are drawn by
the system, and the session folder is our own. Only the process that was started here is ended; `ray stop` would end
every Ray process of the machine.

Run: pytest tests/ray/test_submit.py
"""

import contextlib
import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sakuga import settings
from sakuga.errors import ClusterError

log = logging.getLogger(__name__)

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A local ray.init() would else write a token under the home folder, which every later cluster then demands.
    "RAY_AUTH_MODE": "disabled",
    # Ray Data's own messages and bars are not for the job's log.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_COLOR_PREFIX": "0",
    # A stopped job writes its results before it goes: 3 s, the default, are short on a loaded machine.
    "RAY_JOB_STOP_WAIT_TIME_S": "10",
    # Eight idle workers, one per logical CPU, would start just when the job wants the two cores.
    "RAY_enable_worker_prestart": "0",
    # Ray gives workers niceness 15; a render on a busy laptop would hardly move.
    "RAY_worker_niceness": "0",
    # A busy machine is no dead one: within 30 s, the defaults, its agents may not have had their turn.
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_health_check_timeout_ms": "60000",
    # Nothing on a head of our own is worth the 30 s that it would wait for idle workers.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
LOGICAL_CPUS = 8  # Ray Data needs headroom: with 2 a resume of 12 rows had not ended after 150 s, with 8 it took 7 s
OBJECT_STORE_BYTES = 200 * 1024 * 1024  # rows hold paths, not pixels
START_LIMIT_S = 180.0  # 4 s on an idle two-core machine
STARTED = "Ray runtime started"
STOP_LIMIT_S = 30.0  # 3.5 s idle


@dataclass(slots=True, kw_only=True)
class Head:
    """A running head."""

    process: subprocess.Popen[bytes]
    address: str
    """Where drivers connect, host:port."""
    dashboard_url: str
    """Where jobs are submitted."""
    log_path: Path
    asked_to_end: bool = False

    def terminate(self) -> None:
        """Ask the head to end; `local_head` waits for it."""
        if self.process.poll() is None:
            self.asked_to_end = True
            self.process.send_signal(signal.SIGTERM)

    @property
    def ended_by_itself(self) -> bool:
        return self.process.poll() is not None and not self.asked_to_end


def free_ports(count: int) -> list[int]:
    """`count` different ports that are free on loopback now.

    Outside 10002-19999, which `ray start` refuses for its other ports when workers use the default range.
    """
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            candidate = socket.socket()
            candidate.bind(("127.0.0.1", 0))
            if 10002 <= candidate.getsockname()[1] <= 19999:
                candidate.close()
                continue
            sockets.append(candidate)
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def start_head(temp_dir: Path, num_cpus: int = LOGICAL_CPUS) -> Head:
    """Start `ray start --head --block` as a child process; returns at once, `wait_until_ready` waits.

    Call it in a thread that stays, as the head ends with it. `temp_dir` must be short: Ray puts sockets under it, and
    a socket's path has at most 107 bytes.
    """
    gcs, dashboard, agent, agent_grpc, client, metrics, runtime_env = free_ports(7)
    # With util-linux at hand the head ends even when we are killed without a chance to end it.
    guard = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
    command = [
        *guard,
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--port", str(gcs)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--dashboard-agent-listen-port", str(agent), "--dashboard-agent-grpc-port", str(agent_grpc)),
        *("--ray-client-server-port", str(client), "--metrics-export-port", str(metrics)),
        *("--runtime-env-agent-port", str(runtime_env), "--min-worker-port", "0", "--max-worker-port", "0"),
        *("--num-cpus", str(num_cpus), "--object-store-memory", str(OBJECT_STORE_BYTES)),
        *("--temp-dir", str(temp_dir), "--disable-usage-stats"),
    ]
    log_path = temp_dir / "head.log"
    with log_path.open("wb") as log_file:
        # A session of its own: Ctrl-C at the terminal reaches only us, and we end job and head in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            # Not a redirection to another cluster: Ray's own processes would follow it too.
            env=settings.child_environment({**RAY_ENVIRONMENT, **dict.fromkeys(settings.RAY_REDIRECTIONS)}),
            start_new_session=True,
        )
    return Head(
        process=process,
        address=f"127.0.0.1:{gcs}",
        dashboard_url=f"http://127.0.0.1:{dashboard}",
        log_path=log_path,
    )


def wait_until_ready(head: Head, limit_s: float = START_LIMIT_S) -> None:
    """Return when the head takes jobs: its API answers before its node is up, so both are waited for.

    Raises:
        ClusterError: it ended, or it did not answer within `limit_s`.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if head.process.poll() is not None:
            raise ClusterError(f"the local Ray head ended at its start: {_last_line(head.log_path)}; `sakuga doctor`")
        if STARTED in head.log_path.read_text(errors="replace"):
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                opener.open(f"{head.dashboard_url}/api/version", timeout=5),
            ):
                return
        time.sleep(0.1)
    raise ClusterError(f"the local Ray head did not answer within {limit_s:.0f} s; its log: {head.log_path}")


@contextlib.contextmanager
def local_head(num_cpus: int = LOGICAL_CPUS) -> Iterator[Head]:
    """A head for the time of the block. Not ready at once: call `wait_until_ready`."""
    temp_dir = Path(tempfile.mkdtemp(prefix="sakuga-"))
    keep_logs = False
    try:
        head = start_head(temp_dir, num_cpus)
        try:
            yield head
        finally:
            keep_logs = head.ended_by_itself
            _stop(head)
    finally:
        if keep_logs:
            log.warning(
                "the local ray head ended by itself: %s; its logs: %s", _last_line(temp_dir / "head.log"), temp_dir
            )
        else:
            _remove(temp_dir)


def _remove(folder: Path) -> None:
    """Processes of the head end a little after it, and write to their logs until then."""
    deadline = time.monotonic() + STOP_LIMIT_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _stop(head: Head) -> None:
    head.terminate()
    try:
        head.process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        # Ray's own reaper ends the head's children when the head is gone.
        log.warning("ray head pid=%d did not end within %.0f s of SIGTERM; killed", head.process.pid, STOP_LIMIT_S)
        head.process.kill()
        head.process.wait()


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
