"""What every command prints: a human text or, with `--json`, one JSON object as the last line of stdout.

A command is a plain function with typer annotations. It takes `as_json: AsJson = False`, does its work, and ends with
`finish(payload, text, as_json)`. It raises errors and never prints them: `sakuga.cli.main` does that in one place.
Bars and remarks go to `stderr_console`, so that stdout can be piped.

Run: pytest tests/unit/test_cli.py
"""

import json
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console, RenderableType

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.", show_default=False)
]

PIPE_WIDTH = 200
"""Columns of a table that goes to a file or a pipe, where nothing needs to be squeezed."""

stdout_console = Console(soft_wrap=True, highlight=False)
stderr_console = Console(stderr=True, highlight=False)


def finish(payload: Mapping[str, object], text: RenderableType, as_json: bool, exit_code: int = 0) -> None:
    """Print the result of a command and, with a code other than 0, end it with that code.

    `text` is a string (with rich markup) or anything else that rich draws; it is not printed with `--json`.
    NaN and infinity are refused: they are not JSON, and a figure that is not finite needs an answer from the caller.
    """
    if as_json:
        print_json(payload)
    else:
        console = stdout_console if stdout_console.is_terminal else Console(width=PIPE_WIDTH, highlight=False)
        console.print(text)
    if exit_code:
        raise typer.Exit(exit_code)


def print_json(payload: Mapping[str, object]) -> None:
    print(json.dumps(payload, allow_nan=False, ensure_ascii=False, default=str), flush=True)


def tera(flops: float) -> str:
    """Three digits, without an exponent.

    >>> tera(6.54e15), tera(6.94e9)
    ('6,540', '0.00694')
    """
    rounded = float(f"{flops / 1e12:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def duration(seconds: float) -> str:
    """Three digits are more than an estimate is worth.

    >>> duration(0.0123), duration(18.83), duration(754), duration(9000)
    ('12 ms', '18.8 s', '12.6 min', '2.5 h')
    """
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
