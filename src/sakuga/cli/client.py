"""The farm as a command sees it: the official `openai` client, and its errors as ours.

The address and the key come from the options, from SAKUGA_URL and SAKUGA_API_KEY, or from the folder in which
`sakuga serve` runs.     Run: pytest tests/unit/test_cli_jobs.py
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sakuga.cli.serve import DATA, KEY_FILE
from sakuga.errors import FarmError, SettingsError
from sakuga.settings import from_environment

if TYPE_CHECKING:
    from openai import OpenAI

DEFAULT_URL = "http://127.0.0.1:8000"
SILENCE_S = 60.0
"""The farm sends at least a ping every 15 s."""

Url = Annotated[str | None, typer.Option(help=f"Of the farm; SAKUGA_URL or {DEFAULT_URL} if not given.")]
ApiKey = Annotated[str | None, typer.Option(help="SAKUGA_API_KEY or that of `sakuga serve` here, if not given.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event of a job's history."""

    seq: str
    type: str
    data: Mapping[str, object]


class Farm:
    """A running farm."""

    def __init__(self, url: str | None, api_key: str | None) -> None:
        known = from_environment()
        self.url = (url or known.url or DEFAULT_URL).rstrip("/")
        self.api_key = api_key or known.api_key or _local_key()

    @contextlib.contextmanager
    def client(self) -> "Iterator[OpenAI]":
        """The client; what it raises inside the block is raised as FarmError."""
        import openai

        try:
            yield openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=2)
        except openai.APIStatusError as error:
            raise _as_ours(error.body, error.status_code) from None
        except openai.APIConnectionError as error:
            raise self._gone(error) from None

    def events(self, job_id: str, last: str | None = None) -> Iterator[Told]:
        """A job's history, from its first event or behind `last`, until it ends."""
        import httpx
        from httpx_sse import connect_sse

        headers = {"Authorization": f"Bearer {self.api_key}"} | ({"Last-Event-ID": last} if last else {})
        address = f"{self.url}/v1/videos/{job_id}/events"
        try:
            with (
                httpx.Client(timeout=SILENCE_S, trust_env=False) as http,
                connect_sse(http, "GET", address, headers=headers) as source,
            ):
                if source.response.status_code == 204:
                    return  # it has ended, and all of it was told
                if source.response.status_code != 200:
                    source.response.read()
                    with contextlib.suppress(json.JSONDecodeError):
                        raise _as_ours(source.response.json().get("error"), source.response.status_code)
                for told in source.iter_sse():
                    if not told.data:
                        continue  # the first one says only how long to wait before coming back
                    yield Told(seq=told.id, type=told.event, data=told.json())
        except httpx.HTTPError as error:
            raise self._gone(error) from None

    def _gone(self, error: Exception) -> FarmError:
        return FarmError(f"{self.url} does not answer: {error}; is `sakuga serve` running there?")


def _local_key() -> str:
    path = DATA / KEY_FILE
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    raise SettingsError(f"no API key: give --api-key, set SAKUGA_API_KEY, or run where {path} is")


def _as_ours(body: object, status: int) -> FarmError:
    told = body if isinstance(body, Mapping) else {}
    error = FarmError(str(told.get("message") or f"the farm answered with status {status}"))
    if isinstance(told.get("code"), str):
        error.code = str(told["code"])
    error.exit_code = 2 if 400 <= status < 500 else 3
    return error


def save(content: bytes, path: Path) -> Path:
    """Whole or not at all."""
    from sakuga.media import write_bytes_atomic

    write_bytes_atomic(path, content)
    return path
