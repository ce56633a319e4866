"""`sakuga synth`: draw the procedural dancers as a data set on disk.

Run: pytest tests/unit/test_cli_commands.py
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sakuga.cli.output import AsJson, finish, stderr_console


def synth(
    out: Annotated[Path, typer.Argument(help="Folder for the data set; complete samples in it are kept.")],
    preset: Annotated[
        str, typer.Option(help="small (50 groups) or full (5,000); a group is one figure in two worlds.")
    ] = ("small"),
    groups: Annotated[int | None, typer.Option(help="Number of groups, instead of a preset.")] = None,
    first_seed: Annotated[
        int,
        typer.Option(help="Seed of the first group; every tenth is a test group. From 67108864 on all are held out."),
    ] = 0,
    width: Annotated[int, typer.Option(help="Pixels.")] = 128,
    height: Annotated[int, typer.Option(help="Pixels.")] = 128,
    num_frames: Annotated[int, typer.Option("--num-frames", "--frames", help="Frames of a clip.")] = 33,
    fps: Annotated[int, typer.Option(help="Frames per second.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Draw the procedural dancers as a data set that DiffSynth reads; run again, it draws what is missing.

    The embedded Wan-mini was trained on seeds below 2**26, those of test groups too: judge it on held-out seeds, with
    --first-seed 67108864.
    """
    from sakuga.synth.dataset import write_dataset

    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr_console, disable=not stderr_console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def on_sample(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        summary = write_dataset(
            out,
            preset,
            num_groups=groups,
            first_seed=first_seed,
            width=width,
            height=height,
            num_frames=num_frames,
            fps=fps,
            on_sample=on_sample,
        )
    payload = {
        "folder": str(summary.folder),
        "num_train": summary.num_train,
        "num_test": summary.num_test,
        "num_drawn": summary.num_drawn,
    }
    text = (
        f"{summary.num_train} training and {summary.num_test} test clips in {summary.folder}, {summary.num_drawn} new"
    )
    finish(payload, escape(text), as_json)
