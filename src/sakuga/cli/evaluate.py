"""`sakuga evaluate`: how close generated videos are to their references, and how they behave on their own.

Run: pytest tests/unit/test_cli_commands.py tests/unit/test_cli_rate.py
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sakuga.cli.output import AsJson, finish

if TYPE_CHECKING:
    from sakuga.quality import EvaluationReport, SetReport

FIDELITY = ("psnr_db", "ssim", "vmaf", "xpsnr_db")
IN_TIME = ("flicker", "motion", "motion_ratio", "warp_error", "drift", "identity")
WHERE_MEASURED = {FIDELITY: ("lpips", "clip", "subjective", "weighted_total"), IN_TIME: ("adherence",)}
"""Columns that stand only where a video has the figure."""


def evaluate(
    ref: Annotated[Path, typer.Argument(help="Reference video, or a folder of them.")],
    gen: Annotated[Path, typer.Argument(help="Generated video, or a folder; matched by file name without suffix.")],
    subjective: Annotated[
        float | None, typer.Option(help="What people gave, 0 to 20; adds the weighted total of the means.")
    ] = None,
    ratings: Annotated[
        Path | None, typer.Option(help="What people gave in `sakuga rate` to the variant of GEN's folder.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL or metadata.csv with `video` and `prompt`; adds prompt adherence.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="lpips=FILE, clip=FOLDER or fvd=FILE: a learned metric and its weights.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure fidelity, flicker with motion, warp error, drift, identity. Code 1 if a pair failed."""
    from sakuga.errors import InputError
    from sakuga.quality import evaluate_paths, report_of_pairs, weighted_total
    from sakuga.quality.report import read_prompts

    if subjective is not None and not 0 <= subjective <= 20:
        raise InputError(f"--subjective is {subjective:g}, but the total takes 0 to 20")
    if subjective is not None and ratings is not None:
        raise InputError("--subjective and --ratings both say what people gave: give one, not both")
    people = _ratings(ratings, gen) if ratings is not None else {}
    named = read_prompts(prompts) if prompts is not None else {}
    learned = []
    if metric:
        from sakuga.quality.learned import load_metrics  # torch, which no other metric needs

        learned = load_metrics(metric)
    pairs = evaluate_paths(ref, gen, prompts=named, learned=learned)
    report = report_of_pairs(pairs, learned=learned, subjective=people)
    payload = pairs.as_dict() | {"set": report.summary()}
    mean = pairs.mean()
    psnr_db, ssim = mean.get("psnr_db"), mean.get("ssim")
    if subjective is not None and psnr_db is not None and ssim is not None:
        payload["weighted_total"] = weighted_total(subjective, psnr_db, ssim)
    elif (total := report.means().get("weighted_total")) is not None:
        payload["weighted_total"] = total.mean
    finish(payload, _text(pairs, report, payload.get("weighted_total")), as_json, exit_code=1 if pairs.failures else 0)


def _ratings(path: Path, gen: Path) -> dict[str, float]:
    """What people gave to each video of the folder."""
    from sakuga.errors import InputError, shown
    from sakuga.quality.ratings import read_ratings, subjective_by_stem

    if not path.is_file():
        raise InputError(f"{shown(path)} does not exist: give the ratings.jsonl that `sakuga rate` wrote")
    folder = gen.resolve() if gen.is_dir() else gen.resolve().parent
    return subjective_by_stem(read_ratings(path), folder.name)


def _text(pairs: "EvaluationReport", report: "SetReport", total: object) -> Group:
    tables = [_table(report, (*columns, *more)) for columns, more in WHERE_MEASURED.items()]  # 80 columns hold each
    notes = [f"{name}: {value:.4g}" for name, value in report.of_set.items()]
    notes += [*report.notes, *(f"{row.name}: {note}" for row in report.rows for note in row.notes)]
    notes += [f"{failure.name}: {failure.code}: {failure.message}" for failure in report.failures]
    notes += [f"only in the reference: {name}" for name in pairs.only_in_ref]
    notes += [f"only in the generated: {name}" for name in pairs.only_in_gen]
    if total is not None:
        notes.append(f"weighted total: {total:.4f}")
    return Group(tables[0], Text(), tables[1], *(Text(note) for note in notes))


def _table(report: "SetReport", columns: tuple[str, ...]) -> Table:
    means = report.means()
    columns = tuple(name for name in columns if name in means or name in (*FIDELITY, *IN_TIME))
    table = Table("video", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=True, min_width=len(name))
    for row in report.rows:
        table.add_row(escape(row.name), *(_figure(row.figures.get(name)) for name in columns))
    if len(report.rows) > 1:
        found = [means.get(name) for name in columns]
        halves = [value.high - value.mean if value and value.high is not None else None for value in found]
        table.add_row("mean", *(_figure(value.mean if value else None) for value in found))
        table.add_row("± (95 %)", *(_figure(half) for half in halves))
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 10 else f"{value:.2f}"
