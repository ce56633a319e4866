"""The farm as a command sees it: the official `openai` client, and its errors as ours.

The address and the key come from the options, from SAKUGA_URL and SAKUGA_API_KEY, or from the folder in which
`sakuga serve` runs.     Run: pytest tests/unit/test_cli_jobs.py tests/unit/test_cli_watch.py
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import urlsplit

import typer

from sakuga.cli.serve import DATA, DEFAULT_URL, KEY_FILE
from sakuga.errors import FarmError, SettingsError, shown
from sakuga.settings import from_environment

if TYPE_CHECKING:
    from openai import OpenAI

    from sakuga.tuning.profiles import SpeedProfile

FINAL = ("completed", "failed", "cancelled", "deleted")
SILENCE_S = 60.0
"""The farm sends at least a ping every 15 s."""
UPLOAD_S = 600.0
"""A LoRA of a large model is half a gigabyte, and the farm checks it before it answers."""
ANSWER_S = 60.0
"""A profile's promotion may hash the weights first."""
AGAIN_S = 1.0
PATIENCE_S = 120.0
"""How long a farm that answered before may be away: it is started again, or its machine is."""
RETRIES = 2
EXIT_CODES = {429: 4}

Url = Annotated[str | None, typer.Option(help=f"Of the farm; SAKUGA_URL or {DEFAULT_URL} if not given.")]
ApiKey = Annotated[str | None, typer.Option(help="SAKUGA_API_KEY or that of `sakuga serve` here, if not given.")]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event of a job's history."""

    seq: str
    type: str
    data: Mapping[str, object]


class GoneError(FarmError):
    """A farm that does not answer, or not now: the same again may do."""


class Farm:
    """A running farm."""

    def __init__(self, url: str | None, api_key: str | None) -> None:
        known = from_environment()
        self.url = _checked_url(url or known.url or DEFAULT_URL)
        self.api_key = _checked_key(api_key or known.api_key or _local_key())

    @contextlib.contextmanager
    def client(self) -> "Iterator[OpenAI]":
        """The client; what it raises inside the block is raised as FarmError."""
        import openai

        try:
            yield openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=RETRIES)
        except openai.APIStatusError as error:
            raise self._refused(error.body, error.status_code) from None
        except openai.APIConnectionError as error:
            raise self._gone(error) from None

    def checked(self, answer: Answer) -> Answer:
        """An answer of the client's. Raises FarmError for a page of some other server, which the client hands on."""
        if isinstance(answer, str):
            raise self._no_farm()
        return answer

    def promote(self, profile: "SpeedProfile") -> dict[str, object]:
        """Offer a profile to the farm's requests; the entry as the farm has it now. Raises FarmError."""
        return self.ask("POST", "/profiles", profile.as_dict())

    def profiles(self) -> list[dict[str, object]]:
        """The profiles that requests can name, and those that were rolled back. Raises FarmError."""
        found = self.ask("GET", "/profiles").get("data")
        if not isinstance(found, list):
            raise self._no_farm()
        return found

    def roll_back(self, profile_id: str, why: Mapping[str, object]) -> dict[str, object]:
        """Take a version of a profile back for what a gate found. Raises FarmError."""
        return self.ask("POST", f"/profiles/{profile_id}/rollback", why)

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, object]:
        """One request below /v1, answered with a JSON object. Raises FarmError."""
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"}
        try:
            answer = httpx.request(method, f"{self.url}/v1{path}", headers=headers, json=body, timeout=ANSWER_S)
        except httpx.HTTPError as error:
            raise self._gone(error) from None
        if not answer.is_success:
            raise self._refused(_error_in(answer.text), answer.status_code)
        with contextlib.suppress(json.JSONDecodeError):
            if isinstance(told := answer.json(), dict):
                return told
        raise self._no_farm()

    def upload_lora(self, path: Path, name: str, model: str) -> str:
        """Give the farm a LoRA; the id that requests name it by. Raises FarmError."""
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"}
        try:
            with path.open("rb") as file:
                answer = httpx.post(
                    f"{self.url}/v1/loras",
                    headers=headers,
                    data={"name": name, "model": model},
                    files={"file": (path.name, file)},
                    timeout=UPLOAD_S,
                )
        except httpx.HTTPError as error:
            raise self._gone(error) from None
        if not answer.is_success:
            raise self._refused(_error_in(answer.text), answer.status_code)
        with contextlib.suppress(json.JSONDecodeError, TypeError, KeyError):
            return str(answer.json()["id"])
        raise self._no_farm()

    def history(self, job_id: str) -> Iterator[Told]:
        """A job's events, from the first one to its end; a stream that breaks is taken up behind the last of them."""
        last: str | None = None
        away_since: float | None = None
        while True:
            broken = self._gone("its events broke off")
            try:
                for told in self._stream(job_id, last):
                    last, away_since = told.seq or last, None
                    yield told
                    if told.type in FINAL:
                        return
            except GoneError as error:
                broken = error
            away_since = away_since or time.monotonic()
            if last is None or time.monotonic() - away_since > PATIENCE_S:
                raise broken
            time.sleep(AGAIN_S)

    def _stream(self, job_id: str, last: str | None) -> Iterator[Told]:
        import httpx
        from httpx_sse import SSEError, connect_sse

        headers = {"Authorization": f"Bearer {self.api_key}"} | ({"Last-Event-ID": last} if last else {})
        address = f"{self.url}/v1/videos/{job_id}/events"
        try:
            with (
                httpx.Client(timeout=SILENCE_S) as http,
                connect_sse(http, "GET", address, headers=headers) as source,
            ):
                if not source.response.is_success:
                    source.response.read()
                    raise self._refused(_error_in(source.response.text), source.response.status_code)
                for told in source.iter_sse():
                    if told.data:  # the first one says only how long to wait before coming back
                        yield Told(seq=told.id, type=told.event, data=told.json())
        except SSEError:
            raise self._no_farm() from None
        except httpx.HTTPError as error:
            raise self._gone(error) from None

    def _refused(self, body: object, status: int) -> FarmError:
        """What the farm said, under its own code."""
        told = body if isinstance(body, Mapping) else {}
        sentence = str(told.get("message") or f"{self.url} answered with status {status}; is it the address of a farm?")
        error = GoneError(sentence) if status >= 500 else FarmError(sentence)
        if isinstance(told.get("code"), str):
            error.code = str(told["code"])
        error.exit_code = EXIT_CODES.get(status, 2 if status < 500 else 3)
        return error

    def _gone(self, why: object) -> GoneError:
        return GoneError(f"{self.url} does not answer ({why}); is `sakuga serve` running there?")

    def _no_farm(self) -> FarmError:
        return FarmError(f"{self.url} answers, but not as a farm does; is it the address of one?")


def _checked_url(url: str) -> str:
    """Without what is added to it: people give the address of the farm, or the one that OpenAI's client takes."""
    import httpx

    with contextlib.suppress(ValueError, httpx.InvalidURL):
        if urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname and httpx.URL(url).host:
            return url.rstrip("/").removesuffix("/v1")
    raise SettingsError(f"{shown(url)} is no address of a farm; write it as {DEFAULT_URL}")


def _checked_key(key: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError("the API key has characters that no key has; give it as `sakuga serve` printed it")
    return key


def _local_key() -> str:
    path = DATA / KEY_FILE
    with contextlib.suppress(OSError):
        if key := path.read_text(encoding="utf-8", errors="replace").strip():
            return key
    raise SettingsError(f"no API key: give --api-key, set SAKUGA_API_KEY, or run where {path} is")


def _error_in(text: str) -> object:
    with contextlib.suppress(json.JSONDecodeError, AttributeError):
        return json.loads(text).get("error")
    return None
