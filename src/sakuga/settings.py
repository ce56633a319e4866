"""Everything that Sakuga takes from the environment, and the only module that reads it.

An empty variable counts as unset. Nothing is read at import: call `from_environment` where the value is needed.

| variable | meaning | default |
|---|---|---|
| SAKUGA_CACHE | folder for what is downloaded: weights from S3, models | ~/.cache/sakuga |
| SAKUGA_S3_ENDPOINT | address of a server that speaks S3 | the AWS of boto3's own configuration |
| SAKUGA_NUM_THREADS | threads of PyTorch in one process | bulk workers share the cores, else PyTorch's own choice |
| SAKUGA_URL | the farm that `sakuga submit` and the others ask | http://127.0.0.1:8000 |
| SAKUGA_API_KEY | its key | that of `sakuga serve` in the same folder |
| SAKUGA_LOG_LEVEL | DEBUG, INFO, WARNING or ERROR | WARNING |

Run its tests: pytest tests/unit/test_settings.py
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sakuga.errors import SettingsError, did_you_mean, shown

PREFIX = "SAKUGA_"
VARIABLES = (
    "SAKUGA_CACHE",
    "SAKUGA_S3_ENDPOINT",
    "SAKUGA_NUM_THREADS",
    "SAKUGA_URL",
    "SAKUGA_API_KEY",
    "SAKUGA_LOG_LEVEL",
)
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
MAX_THREADS = 1024
RAY_REDIRECTIONS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""With one of these set, Ray's clients of jobs leave the address that they are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The environment's wishes, checked."""

    cache_dir: Path
    s3_endpoint_url: str | None = None
    num_threads: int | None = None
    log_level: str = "WARNING"
    url: str | None = None
    api_key: str | None = None


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process. Raises SettingsError for a misspelt variable or a value that cannot be used."""
    source = os.environ if environment is None else environment
    given = {name: value for name, value in source.items() if name.startswith(PREFIX) and value}
    for name in given:
        if name not in VARIABLES:
            raise SettingsError(f"no such setting: {shown(name)}{did_you_mean(name, VARIABLES)}; unset it")
    level = given.get("SAKUGA_LOG_LEVEL", "WARNING").upper()
    if level not in LOG_LEVELS:
        raise SettingsError(f"SAKUGA_LOG_LEVEL is {shown(level)}; it must be one of {', '.join(LOG_LEVELS)}")
    endpoint = given.get("SAKUGA_S3_ENDPOINT")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise SettingsError(f"SAKUGA_S3_ENDPOINT is {shown(endpoint)}; it must begin with https:// or http://")
    url = given.get("SAKUGA_URL")
    if url is not None and not url.startswith(("http://", "https://")):
        raise SettingsError(f"SAKUGA_URL is {shown(url)}; it must begin with https:// or http://")
    cache = Path(given["SAKUGA_CACHE"]) if "SAKUGA_CACHE" in given else Path.home() / ".cache" / "sakuga"
    return Settings(
        cache_dir=cache.expanduser(),
        s3_endpoint_url=endpoint,
        num_threads=_threads(given.get("SAKUGA_NUM_THREADS")),
        log_level=level,
        url=url,
        api_key=given.get("SAKUGA_API_KEY"),
    )


def child_environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """The environment for a child process: ours with some variables set, or taken out where the value is None."""
    merged: dict[str, str | None] = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def set_for_libraries(changes: Mapping[str, str]) -> None:
    """Sets variables in this process that libraries (Ray) read when they are first used; those already set stay."""
    for name, value in changes.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def without_variables(names: Iterable[str]) -> Iterator[None]:
    """Takes variables out of this process for the block."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def in_submitted_job() -> bool:
    """Whether `ray job submit` started this process: its current folder is then a copy of Ray's that is thrown away."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine's under `taskset` or a cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ray_auth_mode() -> str | None:
    """RAY_AUTH_MODE, Ray's own variable: "token", "disabled" or None when it is not set."""
    return os.environ.get("RAY_AUTH_MODE") or None


def _threads(value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdecimal() or not 1 <= int(value) <= MAX_THREADS:
        raise SettingsError(f"SAKUGA_NUM_THREADS is {shown(value)}; it must be a whole number from 1 to {MAX_THREADS}")
    return int(value)


@contextlib.contextmanager
def for_a_while(**variables: str) -> Iterator[None]:
    """Set variables of ours for the block, for commands that are run in this process as if they had been typed."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
