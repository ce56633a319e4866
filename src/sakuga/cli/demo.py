"""`sakuga demo`: six dances on this machine, as a real Ray job.

Run: pytest tests/ray/test_submit.py
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from sakuga.cli import options
from sakuga.cli.output import AsJson, finish

if TYPE_CHECKING:
    from sakuga.farm.demo.run import Demo

NUM_WORKERS = 1


def demo(
    out: Annotated[Path, typer.Option(help="Folder for videos, contact sheet and page.")] = Path("out/demo"),
    num_workers: Annotated[int, typer.Option("--num-workers", "--workers", min=1, help="Engines side by side.")] = (
        NUM_WORKERS
    ),
    num_threads: options.NumThreads = None,
    steps: options.Steps = None,
    weights: options.Weights = None,
    as_json: AsJson = False,
) -> None:
    """Render six dances, people and anime fairies, as a Ray job on this machine, and make a page of them."""
    from sakuga.cli.bars import bulk_bars
    from sakuga.farm.demo.run import run_demo

    job_options = ("--steps", str(steps)) if steps is not None else ()
    with bulk_bars(out):
        result = run_demo(out, num_workers=num_workers, num_threads=num_threads, weights=weights, options=job_options)
    payload = result.summary.as_dict() | {
        "contact_sheet": str(result.contact_sheet),
        "page": str(result.page),
        "demo_seconds": result.seconds,
    }
    finish(payload, _text(result), as_json, exit_code=result.summary.exit_code)


def _text(result: "Demo") -> str:
    summary = result.summary
    counts = [f"{summary.done} rendered"]
    counts += [f"{summary.skipped} finished before"] if summary.skipped else []
    counts += [f"[red]{summary.failed} failed[/red]"] if summary.failed else []
    lines = [
        "",
        f"[bold]{', '.join(counts)} in {result.seconds['total']:.0f} s[/bold]",
        f"  videos         {escape(str(result.out))}",
        f"  contact sheet  {escape(str(result.contact_sheet or 'none: no video'))}",
        f"  page           {escape(str(result.page))}",
        "",
        "Next:",
        '  one of your own         sakuga render "a fairy dances" --lora fairy --image me.png --out out/mine',
        f"  a manifest              sakuga bulk {escape(str(result.out / 'manifest.jsonl'))} --out out/bulk --steps 30",
        "  what this machine can   sakuga doctor",
    ]
    if summary.failed:
        lines.insert(2, f"  why                    {escape(str(result.out / 'results.jsonl'))}; run again to retry")
    return "\n".join(lines)
