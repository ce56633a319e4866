"""`sakuga evaluate`: how close generated videos are to their references.

Run: pytest tests/unit/test_cli_commands.py
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
    from sakuga.quality import EvaluationReport

COLUMNS = ("psnr_db", "ssim", "vmaf", "xpsnr_db", "flicker", "motion", "motion_ratio", "warp_error")


def evaluate(
    ref: Annotated[Path, typer.Argument(help="Reference video, or a folder of them.")],
    gen: Annotated[Path, typer.Argument(help="Generated video, or a folder; matched by file name without suffix.")],
    subjective: Annotated[
        float | None, typer.Option(help="What people gave, 0 to 20; adds the weighted total of the means.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure PSNR, SSIM, VMAF, XPSNR, flicker, motion and warp error. Code 1 if a pair failed."""
    from sakuga.errors import InputError
    from sakuga.quality import evaluate_paths, weighted_total

    if subjective is not None and not 0 <= subjective <= 20:
        raise InputError(f"--subjective is {subjective:g}, but the total takes 0 to 20")
    report = evaluate_paths(ref, gen)
    payload = report.as_dict()
    mean = report.mean()
    psnr_db, ssim = mean.get("psnr_db"), mean.get("ssim")
    if subjective is not None and psnr_db is not None and ssim is not None:
        payload["weighted_total"] = weighted_total(subjective, psnr_db, ssim)
    finish(payload, _text(report, payload.get("weighted_total")), as_json, exit_code=1 if report.failures else 0)


def _text(report: "EvaluationReport", total: object) -> Group:
    table = Table("video", *COLUMNS, box=None, pad_edge=False)
    rows = [(row.name, row.report.figures()) for row in report.rows]
    if len(rows) > 1:
        rows.append(("mean", report.mean()))
    for name, figures in rows:
        values = [figures.get(column) for column in COLUMNS]
        table.add_row(escape(name), *("-" if value is None else f"{value:.4g}" for value in values))
    notes = [f"{row.name}: {note}" for row in report.rows for note in row.report.notes]
    notes += [f"{failure.name}: {failure.code}: {failure.message}" for failure in report.failures]
    notes += [f"only in the reference: {name}" for name in report.only_in_ref]
    notes += [f"only in the generated: {name}" for name in report.only_in_gen]
    if total is not None:
        notes.append(f"weighted total: {total:.4f}")
    return Group(table, *(Text(note) for note in notes))
