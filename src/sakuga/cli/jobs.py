"""Jobs on a running farm: submit, jobs, watch, cancel, download, logs. All through the HTTP API, with its own client.

Run: pytest tests/unit/test_cli_jobs.py
"""

import contextlib
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from sakuga.cli import options
from sakuga.cli.bars import clock
from sakuga.cli.client import ApiKey, Farm, Told, Url, save
from sakuga.cli.output import AsJson, finish, stderr_console, stdout_console
from sakuga.errors import RecipeError, shown

FINAL = ("completed", "failed", "cancelled", "deleted")
SUFFIX = {"video": ".mp4", "thumbnail": ".webp", "spritesheet": ".sprites.webp"}
UNSAID = ("at", "id", "status", "preview", "type")
"""Of an event: said by the line already, or not for people."""
STYLES = {"completed": "green", "failed": "red", "queued": "dim"}
JobId = Annotated[str, typer.Argument(help="As `sakuga submit` printed it.")]


def submit(
    prompt: Annotated[str, typer.Argument(help="What the video shows, in a sentence.")],
    image: Annotated[Path | None, typer.Option(help="First frame: JPEG, PNG or WEBP.")] = None,
    model: Annotated[str | None, typer.Option(help="One of those that the farm serves.")] = None,
    seconds: Annotated[str | None, typer.Option(help="Length; the model's own if not given.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT.")] = None,
    lora: options.Loras = None,
    field: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field, as in --set num_inference_steps=20.")
    ] = None,
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
    extra = options.given(loras=lora and json.dumps(lora), priority=priority, deadline_s=deadline_s,
                          webhook_url=webhook_url) | dict(_pair(text) for text in field or [])  # fmt: skip
    given = options.given(model=model, seconds=seconds, size=size)
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    with contextlib.ExitStack() as files, farm.client() as client:
        if image is not None:
            given["input_reference"] = files.enter_context(image.open("rb"))
        video = client.videos.create(prompt=prompt, extra_body=extra, extra_headers=headers, **given)  # ty: ignore
    if not watch:
        finish(video.model_dump(), video.id, as_json)
        return
    _watch_to_file(farm, video.id, out or Path(f"{video.id}.mp4"), as_json)


def jobs(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Your latest jobs, the newest first."""
    with Farm(url, api_key).client() as client:
        page = client.videos.list(limit=limit)
    table = Table(box=None, pad_edge=False)
    for name in ("id", "status", "progress", "submitted", "size", "seconds", "prompt"):
        table.add_column(name, no_wrap=name != "prompt")
    for video in page.data:
        style = STYLES.get(video.status, "")
        at = datetime.fromtimestamp(video.created_at).strftime("%m-%d %H:%M:%S")  # the reader's own
        prompt = escape(repr(video.prompt or "")[1:-1][:60])
        progress = f"{video.progress} %"
        status = f"[{style or 'default'}]{video.status}[/]"
        table.add_row(video.id, status, progress, at, video.size, video.seconds, prompt)
    finish({"data": [video.model_dump() for video in page.data]}, table if page.data else "no jobs yet", as_json)


def watch(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(help="Where the video goes; without it, it is not fetched.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Follow a job to its end; Ctrl-C only detaches."""
    _watch_to_file(Farm(url, api_key), job_id, out, as_json)


def cancel(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Stop a job."""
    with Farm(url, api_key).client() as client:
        answer = client.post(f"/videos/{job_id}/cancel", cast_to=dict[str, object])
    finish(answer, f"{job_id} is cancelled", as_json)


def download(
    job_id: JobId,
    variant: Annotated[str, typer.Option(help="video, thumbnail or spritesheet.")] = "video",
    out: Annotated[Path | None, typer.Option(help="File; named after the job if not given.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a finished video, or its pictures."""
    if variant not in SUFFIX:
        raise RecipeError(f"variant {shown(variant)} is unknown; choose one of {', '.join(SUFFIX)}")
    path = _fetch(Farm(url, api_key), job_id, variant, out or Path(f"{job_id}{SUFFIX[variant]}"))
    finish({"path": str(path)}, str(path), as_json)


def logs(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """What happened to a job, as it happens, until its end."""
    told = []
    for event in Farm(url, api_key).events(job_id):
        told.append({"seq": event.seq, "type": event.type, **event.data})
        if not as_json:
            stdout_console.print(_line(event))
    finish({"events": told}, "", as_json) if as_json else None


def _watch_to_file(farm: Farm, job_id: str, out: Path | None, as_json: bool) -> None:
    try:
        end = _follow(farm, job_id)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"detached, the job goes on: `sakuga watch {job_id}`") from None
    with farm.client() as client:
        video = client.videos.retrieve(job_id)
    payload, text = video.model_dump(), f"{job_id} {end}"
    if end == "completed" and out is not None:
        payload["path"] = str(_fetch(farm, job_id, "video", out))
        text = payload["path"]
    if video.error is not None:
        text += f": {escape(video.error.code)} {escape(video.error.message)}"
    finish(payload, text, as_json, 0 if end == "completed" else 1)


def _follow(farm: Farm, job_id: str) -> str:
    """The last event's type; a lost connection is taken up where it broke."""
    last: str | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=stderr_console, disable=not stderr_console.is_terminal) as bar:
        task = bar.add_task("queued", total=None, left="")
        while True:
            for event in farm.events(job_id, last):
                last = event.seq or last
                _draw(bar, task, event)
                if not stderr_console.is_terminal and event.type != "step":
                    stderr_console.print(_line(event))
                if event.type in FINAL:
                    return event.type
            with farm.client() as client:
                status = client.videos.retrieve(job_id).status
            if status in FINAL:
                return status
            time.sleep(1.0)  # the farm is being started again


def _draw(bar: Progress, task: TaskID, event: Told) -> None:
    data = event.data
    eta, step, steps = data.get("eta_s"), data.get("step"), data.get("num_steps")
    left = f"{clock(float(eta))} left" if isinstance(eta, (int, float)) else ""
    where = str(data.get("stage") or event.type)
    if data.get("queue_position") and event.type == "queued":
        where += f", {data['queue_position']} before it"
    if isinstance(step, int) and isinstance(steps, int):
        bar.update(task, description=f"{where} {step}/{steps}", completed=step, total=steps, left=left)
    else:
        bar.update(task, description=where, left=left)


def _line(event: Told) -> str:
    at = event.data.get("at")
    when = datetime.fromtimestamp(at).strftime("%H:%M:%S ") if isinstance(at, (int, float)) else ""
    rest = " ".join(f"{name}={value}" for name, value in event.data.items() if name not in UNSAID and value is not None)
    return escape(f"{when}{event.type} {rest}".rstrip())


def _fetch(farm: Farm, job_id: str, variant: str, out: Path) -> Path:
    with farm.client() as client:
        return save(client.videos.download_content(job_id, variant=variant).read(), out)  # ty: ignore


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RecipeError(f"--set {shown(text)} is no field with a value; write NAME=VALUE")
    return name, value
