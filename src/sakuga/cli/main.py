"""The console script: runs a command and turns whatever it raises into one sentence and an exit code.

    error E_GEOMETRY: 1281x721 is not a multiple of 16; nearest: 1280x720

With `--json` the same error is also the last line of stdout: {"error": {"code": ..., "message": ...}, "exit_code": 2}.
A KeyboardInterrupt may carry the sentence to print ("stopped; run the same command again to go on").

Run: pytest tests/unit/test_cli.py
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from sakuga import settings
from sakuga.cli.app import app
from sakuga.cli.output import print_json
from sakuga.errors import SakugaError

EXIT_USAGE = 2
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # 128 + SIGPIPE: the reader of our output went away, as with `| head`

# typer carries click inside or beside itself, depending on its version; both export this child of click's base error.
_CLICK_ERROR = typer.BadParameter.__mro__[2]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(args: list[str]) -> int:
    """Run one command and report what it raises; the exit code."""
    as_json, debug = "--json" in args, "--debug" in args
    try:
        level = "DEBUG" if debug else settings.from_environment().log_level
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        with typer.main.get_command(app).make_context("sakuga", args or ["--help"]) as context:
            context.command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 the one place where a bug becomes a sentence
        if debug:
            traceback.print_exc()
        code, message, exit_code = describe(error)
        sentence = " ".join(message.split())
        print(f"error {code}: {sentence}", file=sys.stderr, flush=True)
        if as_json:
            print_json({"error": {"code": code, "message": sentence}, "exit_code": exit_code})
        return exit_code
    return 0


def describe(error: BaseException) -> tuple[str, str, int]:
    """Code, sentence and exit code of anything that a command raised."""
    if isinstance(error, SakugaError):
        return error.code, error.message, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "E_INTERRUPTED", str(error) or "interrupted", EXIT_INTERRUPTED
    if isinstance(error, _CLICK_ERROR):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "sakuga"
        text = getattr(error, "format_message", error.__str__)()
        return "E_USAGE", f"{text.strip().rstrip('.')}; see `{command} --help`", EXIT_USAGE
    what = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    return "E_INTERNAL", f"{what} - this is a bug in Sakuga; `sakuga --debug ...` shows where", EXIT_BUG
