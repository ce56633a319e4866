"""`sakuga sweep FILE.yaml`: run a sweep; `sakuga sweep show NAME`, `sakuga sweep resume NAME`.

Run: pytest tests/unit/test_cli_sweep.py
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from sakuga import settings
from sakuga.cli import options
from sakuga.cli.output import AsJson, finish, stderr_console
from sakuga.cli.promote import SWEEPS, Root

if TYPE_CHECKING:
    from sakuga.farm.tune import SweepSummary
    from sakuga.tuning.sweepfile import Sweep
    from sakuga.tuning.trials import SweepFolder, TrialResult

Address = Annotated[str, typer.Option(help="Ray cluster: local starts one, auto finds one, or HOST:PORT.")]
NumExecutors = Annotated[
    int | None, typer.Option("--executors", min=1, help="Trials side by side; the file's if not given.")
]
Name = Annotated[str, typer.Argument(help="Of the sweep.", show_default=False)]


class _RunByDefault(TyperGroup):
    """`sakuga sweep FILE` is `sakuga sweep run FILE`."""

    def parse_args(self, ctx, args):
        words = [*args]
        if words and words[0] not in self.commands and words[0] not in ctx.help_option_names:
            words.insert(0, "run")
        return super().parse_args(ctx, words)


sweep_app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Try out settings: `sakuga sweep FILE.yaml` runs a sweep file; its options: `sakuga sweep run --help`.",
)


@sweep_app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Sweep file (YAML), such as sweeps/fairy-cache.yaml.")],
    out: Root = SWEEPS,
    address: Address = "local",
    executors: NumExecutors = None,
    num_threads: options.NumThreads = None,
    as_json: AsJson = False,
) -> None:
    """Run the trials of a sweep file into OUT/NAME; run again, it goes on where it stopped."""
    from sakuga.tuning.sweepfile import read_sweep
    from sakuga.tuning.trials import SweepFolder

    sweep = read_sweep(file)
    _run(sweep, SweepFolder(out / sweep.name), address, executors, num_threads, as_json)


@sweep_app.command()
def resume(
    name: Name,
    out: Root = SWEEPS,
    address: Address = "local",
    executors: NumExecutors = None,
    num_threads: options.NumThreads = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a sweep that was stopped, or whose driver has died."""
    folder = _folder(out, name)
    _run(folder.sweep(), folder, address, executors, num_threads, as_json)


@sweep_app.command()
def show(name: Name, out: Root = SWEEPS, as_json: AsJson = False) -> None:
    """The trials that have ended, those of the Pareto front first, and where the report is."""
    from sakuga.tuning.report import table

    folder = _folder(out, name)
    sweep = folder.sweep()
    trials = [result.as_dict() for result in folder.results()]
    payload = {"name": sweep.name, "out": str(folder.path), "objectives": list(sweep.objectives), "trials": trials}
    where = f"report: {folder.report}" if folder.report.is_file() else "no report yet"
    finish(payload, Group(table(folder), escape(where)), as_json)


def _run(
    sweep: "Sweep",
    folder: "SweepFolder",
    address: str,
    executors: int | None,
    num_threads: int | None,
    as_json: bool,
) -> None:
    # Before torch is loaded: threads that spin at barriers stall each other's processes.
    settings.set_for_libraries({"OMP_WAIT_POLICY": "passive"})
    from sakuga.farm.tune import run_sweep
    from sakuga.tuning.report import table

    changes = {name: value for name, value in (("count", executors), ("threads", num_threads)) if value is not None}
    sweep = sweep.model_copy(update={"executors": sweep.executors.model_copy(update=changes)})
    with _progress(sweep.objectives) as on_result:
        summary = run_sweep(sweep, folder, address=address, on_result=on_result)
    finish(summary.as_dict(), Group(table(folder), escape(_text(summary, folder))), as_json)


def _folder(out: Path, name: str) -> "SweepFolder":
    from sakuga.recipe.limits import check_slug
    from sakuga.tuning.trials import SweepFolder

    return SweepFolder(out / check_slug("name", name))


def _text(summary: "SweepSummary", folder: "SweepFolder") -> str:
    ended = ", ".join(f"{count} {state}" for state, count in summary.counts.items())
    return (
        f"{summary.num_new} trials in {summary.wall_s:.0f} s ({ended} in all); take {summary.recommended}; "
        f"report: {folder.report}"
    )


@contextlib.contextmanager
def _progress(objectives: Sequence[str]) -> Iterator[Callable[["TrialResult", int, int], None]]:
    """A bar where there is a terminal, a line for each trial where there is none."""
    if not stderr_console.is_terminal:
        yield lambda result, done, total: stderr_console.print(
            escape(f"{done}/{total} {_line(result, objectives)}"), soft_wrap=True
        )
        return
    columns = (
        TextColumn("trials"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=stderr_console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda result, done, total: progress.update(
            bar, completed=done, total=total, description=escape(_line(result, objectives))
        )


def _line(result: "TrialResult", objectives: Sequence[str]) -> str:
    figures = ", ".join(f"{name} {result.figures[name]:.4g}" for name in objectives if name in result.figures)
    return "; ".join(filter(None, (f"{result.id} {result.state}: {result.words}", figures, result.reason)))
