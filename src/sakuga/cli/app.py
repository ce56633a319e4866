"""The commands of `sakuga`, registered in one list.

A command lives in a module of its own as a plain function; heavy imports (torch, ray, diffsynth) stand inside the
function, because `sakuga --help` must answer in less than a second.      Run: pytest tests/unit/test_cli.py
"""

from typing import Annotated

import typer

from sakuga import __version__
from sakuga.cli.bulk import bulk
from sakuga.cli.calibrate import calibrate_app
from sakuga.cli.demo import demo
from sakuga.cli.doctor import doctor
from sakuga.cli.estimate import estimate
from sakuga.cli.evaluate import evaluate
from sakuga.cli.jobs import cancel, download, jobs, logs, submit, watch
from sakuga.cli.loop import loop
from sakuga.cli.lora import lora_app
from sakuga.cli.models import models_app
from sakuga.cli.output import stdout_console
from sakuga.cli.prepare import prepare
from sakuga.cli.profiles import profiles_app
from sakuga.cli.promote import promote, recheck
from sakuga.cli.rate import rate
from sakuga.cli.render import render
from sakuga.cli.serve import serve
from sakuga.cli.sweep import sweep_app
from sakuga.cli.synth import synth
from sakuga.cli.train import train

EPILOG = (
    "Exit codes: 0 done · 1 some videos failed · 2 bad input · 3 the machine or its storage is at fault · "
    "4 busy · 70 a bug in Sakuga · 130 interrupted. Every command takes --json."
)

app = typer.Typer(
    name="sakuga",
    help="Tune, serve and bulk-render Wan video models on Ray, or on this machine alone.",
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        stdout_console.print(f"sakuga {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Tune, serve and bulk-render Wan video models on Ray, or on this machine alone."""
    # `debug` is read by sakuga.cli.main, which also reports what goes wrong before this function runs.


app.command()(demo)
app.command()(loop)
app.command()(render)
app.command()(bulk)
app.command()(serve)
for command in (submit, jobs, watch, cancel, download, logs):
    app.command()(command)
app.command()(synth)
app.command()(prepare)
app.command()(train)
app.add_typer(sweep_app, name="sweep")
app.command()(promote)
app.command()(recheck)
app.command()(evaluate)
app.command()(rate)
app.command()(estimate)
app.add_typer(models_app, name="models")
app.add_typer(lora_app, name="lora")
app.add_typer(profiles_app, name="profiles")
app.add_typer(calibrate_app, name="calibrate")
app.command()(doctor)
