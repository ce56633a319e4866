"""`sakuga doctor`: what this machine can do, and what stands in the way.

Run: pytest tests/unit/test_doctor.py
"""

import dataclasses
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from sakuga.cli.output import AsJson, finish

COLOURS = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "red"}


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, attention kernels, ffmpeg, weights, disk, Ray. Code 3 if rendering cannot work."""
    from sakuga.cli.checks import run_checks

    checks = run_checks(Path.cwd())
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        advice = f" → {check.advice}" if check.advice else ""
        table.add_row(f"[{COLOURS[check.status]}]{check.status}[/]", check.name, escape(check.detail + advice))
    healthy = not any(check.status == "fail" for check in checks)
    payload = {"healthy": healthy, "checks": [dataclasses.asdict(check) for check in checks]}
    finish(payload, table, as_json, exit_code=0 if healthy else 3)
