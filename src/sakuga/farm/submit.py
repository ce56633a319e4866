"""A bulk run as a submitted Ray job: what `ray job submit -- python jobs/render.py` does, waited for.

The job is another process, on a cluster perhaps another machine; it answers with an exit code and one JSON object as
its last line, which become a summary or the same error that a run in this process would raise.

Run: pytest tests/ray/test_submit.py
"""

import contextlib
import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from sakuga import settings
from sakuga.errors import ClusterError, SakugaError
from sakuga.farm.results import BulkSummary

log = logging.getLogger(__name__)

POLL_S = 0.25
STOP_LIMIT_S = 20.0  # ray gives a stopped job RAY_JOB_STOP_WAIT_TIME_S, 10 in our heads, then kills it
# They tell on stderr what they upload, amid our bars.
CHATTY_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
JOB_LOG_NAME = "job.log"


def jobs_dir() -> Path:
    """The folder of the scripts to submit, in the checkout that this package runs from.

    Raises:
        ClusterError: the package was installed without its checkout.
    """
    folder = Path(__file__).resolve().parents[3] / "jobs"
    if not (folder / "render.py").is_file():
        raise ClusterError(
            f"there is no {folder / 'render.py'} to submit; run from a clone of the repository, or use `sakuga bulk`"
        )
    return folder


def run_submitted(dashboard_url: str, manifest: Path, out: Path, options: Sequence[str] = ()) -> BulkSummary:
    """Submit jobs/render.py, wait for its end and give its summary. `options` are those of `sakuga bulk`.

    Raises:
        SakugaError: what the job itself raised, by its code; ClusterError when it gave no answer.
        KeyboardInterrupt: Ctrl-C here; the job was stopped, and the message says how to go on.
    """
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    arguments = [str(manifest.resolve()), "--out", str(out.resolve()), *options]
    try:
        with settings.without_variables(settings.RAY_REDIRECTIONS):  # else the job goes to the cluster they name
            client = JobSubmissionClient(dashboard_url)
        job_id = client.submit_job(
            # Our interpreter by its path: the head's PATH need not name the environment that we run in.
            entrypoint=shlex.join([sys.executable, "render.py", *arguments]),
            runtime_env={"working_dir": str(jobs_dir())},
        )
        try:
            while not client.get_job_status(job_id).is_terminal():
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_stop(client, job_id)) from None
        return _answer(client, job_id, out)
    except (ConnectionError, RuntimeError) as error:
        if isinstance(error, SakugaError):
            raise
        raise ClusterError(f"the Ray head at {dashboard_url} did not take or lost the job: {error}") from error


def _stop(client: JobSubmissionClient, job_id: str) -> str:
    """Stop the job; its last words, which say how to go on."""
    client.stop_job(job_id)
    deadline = time.monotonic() + STOP_LIMIT_S
    while not client.get_job_status(job_id).is_terminal() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    answer = last_object(client.get_job_logs(job_id)) or {}
    message = answer.get("error", {}).get("message", "interrupted")
    return message if message != "interrupted" else "stopped before a video began; run the same command again"


def _answer(client: JobSubmissionClient, job_id: str, out: Path) -> BulkSummary:
    logs = client.get_job_logs(job_id)
    answer = last_object(logs)
    if answer is None or client.get_job_status(job_id) is JobStatus.STOPPED:
        path = _keep_log(out, logs)
        details = client.get_job_info(job_id)
        raise ClusterError(f"the job ended without an answer ({details and details.message}); its log: {path}")
    if "error" in answer:
        raise error_of(answer["error"])
    return BulkSummary(**answer)


def _keep_log(out: Path, logs: str) -> Path | str:
    """The job's log beside its results, as the head and its logs go away with the run."""
    path = out / JOB_LOG_NAME
    try:
        path.write_text(logs)
    except OSError as error:
        log.warning("job log not kept in %s: %s", path, error)
        return "not kept"
    return path


def last_object(logs: str) -> dict | None:
    """The JSON object of the last line that is one; Ray may write lines of its own after it.

    >>> last_object('noise\\n{"videos": 6}\\n(pid=1) bye')
    {'videos': 6}
    """
    for line in reversed(logs.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                return json.loads(line)
    return None


def error_of(answer: dict[str, str]) -> SakugaError:
    """The error of a job as the class with its code, so that exit codes and `except` work as in one process."""
    for kind in _subclasses(SakugaError):
        if kind.__dict__.get("code") == answer["code"]:
            return kind(answer["message"])
    return ClusterError(f"the job failed with {answer['code']}: {answer['message']}")


def _subclasses(kind: type[SakugaError]) -> list[type[SakugaError]]:
    return [kind, *(sub for child in kind.__subclasses__() for sub in _subclasses(child))]
