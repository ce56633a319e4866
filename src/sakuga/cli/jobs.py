"""Jobs on a running farm: submit, jobs, watch, cancel, download, logs. All through the HTTP API, with its own client.

Run: pytest tests/unit/test_cli_jobs.py tests/unit/test_cli_watch.py
"""

import contextlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.markup import escape

from sakuga.cli import options, output
from sakuga.cli.client import ApiKey, Farm, Url
from sakuga.cli.job_view import end_of, line, plain, progress, sentence, state_of, table_of
from sakuga.cli.output import AsJson, finish
from sakuga.errors import ImageError, OutputError, RecipeError, shown

SUFFIX = {
    "video": ".mp4", "thumbnail": ".webp", "spritesheet": ".sprites.webp", "receipt": ".json",
    "preview": ".preview.webp",
}  # fmt: skip
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _job_id(text: str) -> str:
    if not ID.fullmatch(text):
        raise typer.BadParameter(f"{shown(text)} is no id of a job; `sakuga jobs` lists yours")
    return text


JobId = Annotated[str, typer.Argument(help="As `sakuga submit` printed it.", callback=_job_id)]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", help="A name of the model's or an id of the farm's, as in fairy:0.8.")
]
SetFields = Annotated[
    list[str] | None, typer.Option("--set", help="Any other field, as in --set num_inference_steps=20.")
]


def submit(
    prompt: Annotated[str, typer.Argument(help="What the video shows, in a sentence.")],
    image: Annotated[Path | None, typer.Option(help="First frame: JPEG, PNG or WEBP.")] = None,
    model: Annotated[str | None, typer.Option(help="One of those that the farm serves.")] = None,
    seconds: Annotated[str | None, typer.Option(help="Length; the model's own if not given.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT.")] = None,
    lora: Loras = None,
    profile: Annotated[str | None, typer.Option(help="One of `sakuga profiles`.")] = None,
    quality: Annotated[str | None, typer.Option(help="draft, standard or best, instead of a profile.")] = None,
    field: SetFields = None,
    priority: Annotated[str | None, typer.Option(help="interactive, normal or batch.")] = None,
    deadline_s: Annotated[float | None, typer.Option(help="Wanted within so many seconds.")] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Told when the video is there.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key gives the same job.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until it is done; Ctrl-C only detaches.")] = False,
    out: Annotated[Path | None, typer.Option(help="With --watch: where the video goes.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask a farm for a video."""
    farm = Farm(url, api_key)
    given = options.given(prompt=prompt, model=model, seconds=seconds, size=size)
    ours = options.given(loras=lora and json.dumps(lora), profile=profile, quality=quality, priority=priority,
                         deadline_s=deadline_s, webhook_url=webhook_url)  # fmt: skip
    extra = _with_set(ours, field or [], given)
    if out is not None and not watch:
        raise typer.BadParameter("--out needs --watch; without it, `sakuga download` fetches the video later")
    _check_out(out)
    # The client repeats a request whose answer was lost; the key makes the second one find the first one's job.
    headers = {"Idempotency-Key": idempotency_key or f"cli-{uuid.uuid4()}"}
    with contextlib.ExitStack() as files, farm.client() as client:
        if image is not None:
            given["input_reference"] = files.enter_context(_opened(image))
        video = farm.checked(client.videos.create(extra_body=extra, extra_headers=headers, **given))  # ty: ignore
    told = video.model_dump()
    if not as_json:
        notes = told.get("notes")
        remarks = [sentence(video.status, told), *(notes if isinstance(notes, list) else [])]
        _remark(f"{video.id} {remark}" for remark in remarks)
    if not watch:
        finish(told, video.id, as_json)
        return
    _watch_to_file(farm, video.id, out or Path(f"{video.id}.mp4"), as_json)


def jobs(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Your latest jobs, the newest first."""
    from openai.pagination import SyncConversationCursorPage
    from openai.types import Video

    farm, query = Farm(url, api_key), {"params": {"limit": limit}}
    with farm.client() as client:  # not `videos.list`, which cannot tell of a page that is none of a farm's
        page = client.get("/videos", cast_to=SyncConversationCursorPage[Video], options=query)  # ty: ignore
    videos = farm.checked(page).data
    finish({"data": [video.model_dump() for video in videos]}, table_of(videos) if videos else "no jobs yet", as_json)


def watch(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(help="Where the video goes; without it, it is not fetched.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Follow a job to its end; Ctrl-C only detaches."""
    _check_out(out)
    _watch_to_file(Farm(url, api_key), job_id, out, as_json)


def cancel(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Stop a job; one that has ended stays as it is."""
    from openai.types import Video

    farm = Farm(url, api_key)
    with farm.client() as client:
        video = farm.checked(client.post(f"/videos/{job_id}/cancel", cast_to=Video))
    is_cancelled = state_of(video) == "cancelled"
    text = f"{video.id} is cancelled" if is_cancelled else f"{video.id} was {video.status} before; nothing to cancel"
    finish(video.model_dump(), text, as_json)


def download(
    job_id: JobId,
    variant: Annotated[str, typer.Option(help=f"{', '.join(SUFFIX)}.")] = "video",
    out: Annotated[Path | None, typer.Option(help="File; named after the job if not given.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a finished video, or what belongs to it."""
    if variant not in SUFFIX:
        raise RecipeError(f"variant {shown(variant)} is unknown; choose one of {', '.join(SUFFIX)}")
    _check_out(out)
    path = _fetch(Farm(url, api_key), job_id, variant, out or Path(f"{job_id}{SUFFIX[variant]}"))
    finish({"path": str(path)}, escape(str(path)), as_json)


def logs(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """What happened to a job, as it happens, until its end."""
    told = []
    for event in Farm(url, api_key).history(job_id):
        told.append({"seq": event.seq, "type": event.type, **event.data})
        if not as_json:
            output.stdout_console.print(line(event), markup=False)
    if as_json:
        finish({"events": told}, "", as_json)


def _watch_to_file(farm: Farm, job_id: str, out: Path | None, as_json: bool) -> None:
    try:
        with progress(output.stderr_console) as draw:
            for event in farm.history(job_id):
                draw(event)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"detached, the job goes on: `sakuga watch {job_id}`") from None
    with farm.client() as client:
        video = farm.checked(client.videos.retrieve(job_id))
    payload, text = video.model_dump(), end_of(video)
    if video.status == "completed" and out is not None:
        payload["path"] = text = str(_fetch(farm, job_id, "video", out))
    finish(payload, escape(text), as_json, 0 if video.status == "completed" else 1)


def _fetch(farm: Farm, job_id: str, variant: str, out: Path) -> Path:
    from sakuga.media import write_bytes_atomic

    with farm.client() as client:
        content = client.videos.download_content(job_id, variant=variant).read()  # ty: ignore[invalid-argument-type]
    write_bytes_atomic(out, content)
    return out


def _remark(texts: Iterable[str]) -> None:
    for text in texts:
        output.stderr_console.print(plain(text), markup=False, soft_wrap=True)


def _with_set(ours: Mapping[str, object], texts: Sequence[str], given: Mapping[str, object]) -> dict[str, object]:
    """Fields beyond OpenAI's, with those of `--set`, each once."""
    fields = dict(ours)
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RecipeError(f"--set {shown(text)} is no field with a value; write NAME=VALUE")
        if name in fields or name in given:
            raise RecipeError(f"{shown(name)} is given twice; give it once")
        fields[name] = value
    return fields


def _opened(image: Path) -> BinaryIO:
    try:
        return image.open("rb")
    except OSError as error:
        raise ImageError(f"{shown(image)} cannot be read: {error.strerror}") from error


def _check_out(out: Path | None) -> None:
    """Before the wait, not after it."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise OutputError(f"{shown(out)} cannot be written; name a file in a folder that is there")
