"""The console script: runs a command and turns whatever it raises into one sentence and an exit code.

    error E_GEOMETRY: 1281x721 is not a multiple of 16; nearest: 1280x720

With `--json` the same error is also the last line of stdout: {"error": {"code": ..., "message": ...}}.
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

# typer carries click inside or beside itself, depending on its version; both export this child of click's base error.
UsageTrouble: type[Exception] = typer.BadParameter.__mro__[2]

EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # 128 + SIGPIPE: the reader of our output went away, as with `| head`


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(args: list[str]) -> int:
    """Run one command; the exit code. Never raises, except SystemExit of third parties."""
    as_json, debug = "--json" in args, "--debug" in args
    args = args or ["--help"]
    command = typer.main.get_command(app)
    try:
        level = "DEBUG" if debug else settings.from_environment().log_level
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        with command.make_context("sakuga", args) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except KeyboardInterrupt as stop:
        return _report("E_INTERRUPTED", str(stop) or "interrupted", EXIT_INTERRUPTED, as_json)
    except SakugaError as error:
        if debug:
            traceback.print_exc()
        return _report(error.code, error.message, error.exit_code, as_json)
    except UsageTrouble as error:
        return _report("E_USAGE", _usage_sentence(error), 2, as_json)
    except Exception as error:  # noqa: BLE001 the one place where a bug becomes a sentence
        if debug:
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        return _report("E_INTERNAL", f"{what} - this is a bug; `sakuga --debug ...` shows where", EXIT_BUG, as_json)
    return 0


def _usage_sentence(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "sakuga"
    message = getattr(error, "format_message", error.__str__)()
    return f"{message.strip().rstrip('.')}; see `{command} --help`"


def _report(code: str, message: str, exit_code: int, as_json: bool) -> int:
    """One sentence on stderr and, if asked for, the same as JSON on stdout."""
    sentence = " ".join(message.split())
    print(f"error {code}: {sentence}", file=sys.stderr)
    if as_json:
        print_json({"error": {"code": code, "message": sentence}, "exit_code": exit_code})
    return exit_code
