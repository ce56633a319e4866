"""`sakuga prepare`: encode a data set once, for all training runs on it.

Run: pytest tests/unit/test_cli_commands.py
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sakuga import settings
from sakuga.cli import options
from sakuga.cli.output import AsJson, finish, stderr_console
from sakuga.errors import InputError, shown


def prepare(
    data: Annotated[
        Path, typer.Argument(help="Folder with metadata.csv (.json, .jsonl) or captions beside files; a metadata file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for index, report and contact sheet.")] = Path("prepared"),
    model: options.Model = "wan-mini",
    weights: options.Weights = None,
    task: Annotated[
        str | None, typer.Option(help="t2v, i2v, flf2v, control or vace; i2v if the model has it and none is given.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE: only such rows of the metadata; may be repeated.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Caption of files that have none.")] = None,
    width: options.Width = None,
    height: options.Height = None,
    num_frames: options.NumFrames = None,
    fps: options.Fps = None,
    cache: Annotated[
        str | None, typer.Option(help="Folder or s3://bucket/prefix that data sets share; OUT/cache if not given.")
    ] = None,
    num_workers: Annotated[
        int, typer.Option("--num-workers", "--workers", min=0, help="Encoders side by side on Ray; 0: in this process.")
    ] = 0,
    address: Annotated[
        str, typer.Option(help="Ray cluster: local starts one, auto finds one, or HOST:PORT.")
    ] = "local",
    precision: options.Precision = None,
    device: options.Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Encode a training data set into latents and text embeddings; run again, it encodes what is missing."""
    # Before torch is loaded: threads that spin at barriers made it eight times slower beside another busy process.
    settings.set_for_libraries({"OMP_WAIT_POLICY": "passive"})
    from sakuga.farm.prepare import PrepareRequest
    from sakuga.farm.prepare import prepare as prepare_data

    request = PrepareRequest(
        data=data, out=out, model=model, weights=weights, task=task, where=_filter(where or []), prompt=prompt,
        width=width, height=height, num_frames=num_frames, fps=fps, cache=cache, device=device, precision=precision,
    )  # fmt: skip
    columns = (TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr_console, transient=True, disable=not stderr_console.is_terminal) as progress:
        bar = progress.add_task("", total=None)
        summary = prepare_data(
            request,
            num_workers=num_workers,
            address=address,
            on_sample=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    text = (
        f"{summary.num_train} training and {summary.num_test} test samples ({summary.task}) in {summary.out}, "
        f"{summary.num_new} encoded now, {summary.num_rejected} rejected (see report.json), {summary.seconds:.0f} s"
    )
    finish(dataclasses.asdict(summary), escape(text), as_json)


def _filter(where: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in where]
    for text, (name, equals, _) in zip(where, pairs, strict=True):
        if not name or not equals:
            raise InputError(f"--where {shown(text)} is no filter; write COLUMN=VALUE, such as world=fairy")
    return {name.strip(): value.strip() for name, _, value in pairs}
