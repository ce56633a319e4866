"""The command line's promises: its surface, one sentence per error, JSON as the last line, exit codes, a quick start.

Run: pytest tests/unit/test_cli.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from sakuga.cli import main as cli
from sakuga.cli.app import app
from sakuga.errors import BusyError, GeometryError, SakugaError

FROZEN = Path(__file__).with_name("cli_surface.json")
COMMAND = typer.main.get_command(app)
HEAVY = ("torch", "ray", "diffsynth", "numpy", "pydantic", "cv2", "PIL")


def _commands(command=COMMAND, path=""):
    """Every command that can be run, by its words."""
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from _commands(child, f"{path} {name}".strip())
    else:
        yield path, command


def _surface() -> dict[str, list[str]]:
    """Commands with their arguments and options, as a user types them."""
    root = {"": sorted(option for param in COMMAND.params for option in param.opts)}
    return root | {
        path: sorted(
            "/".join(param.opts) if param.param_type_name == "option" else str(param.name).upper()
            for param in command.params
        )
        for path, command in _commands()
    }


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.run(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def last_json(text: str) -> dict:
    return json.loads(text.rstrip("\n").rsplit("\n", 1)[-1])


@pytest.fixture
def failing(monkeypatch):
    """Makes `sakuga doctor` raise."""

    def install(error: BaseException) -> None:
        def broken(_folder):
            raise error

        monkeypatch.setattr("sakuga.cli.checks.run_checks", broken)

    return install


def test_surface_is_frozen():
    """Scripts depend on it. Changed on purpose? `python tests/unit/test_cli.py` writes the new one; review the diff."""
    assert _surface() == json.loads(FROZEN.read_text())


def test_every_command_is_documented():
    page = Path(__file__).parents[2].joinpath("docs", "cli.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for path, _ in _commands():
        assert any(all(word in row.split("|")[1] for word in path.split()) for row in rows), path


@pytest.mark.parametrize("path", [path for path, _ in _commands()])
def test_every_command_takes_json_and_explains_itself(path, capsys):
    options = dict(_commands())[path]
    assert any("--json" in param.opts for param in options.params)
    code, out, _ = run(capsys, *path.split(), "--help")
    assert code == 0
    assert "--json" in out


@pytest.mark.parametrize(
    "args",
    [
        ["bogus"],
        ["models", "bogus"],
        ["--bogus"],
        ["doctor", "--bogus"],
        ["models", "show"],
        ["models", "list", "extra"],
    ],
)
def test_usage_errors(args, capsys):
    code, out, err = run(capsys, *args, "--json")
    assert code == 2
    assert err.startswith("error E_USAGE: ")
    assert err.count("\n") == 1
    assert last_json(out)["error"]["code"] == "E_USAGE"
    assert last_json(out)["exit_code"] == 2


def test_usage_error_names_the_help_of_its_command(capsys):
    _, _, err = run(capsys, "models", "show")
    assert "`sakuga models show --help`" in err


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (GeometryError("1281x721 is not a multiple of 16; nearest: 1280x720"), "E_GEOMETRY", 2),
        (BusyError("another run works here"), "E_BUSY", 4),
        (SakugaError("something of ours"), "E_SAKUGA", 3),
        (KeyboardInterrupt(), "E_INTERRUPTED", 130),
        (KeyboardInterrupt("stopped; run again to go on"), "E_INTERRUPTED", 130),
        (ZeroDivisionError("a bug"), "E_INTERNAL", 70),
        (OSError(28, "No space left on device"), "E_INTERNAL", 70),
    ],
)
def test_errors_are_one_sentence_with_a_code(error, code, exit_code, failing, capsys):
    failing(error)
    plain_code, plain_out, plain_err = run(capsys, "doctor")
    json_code, json_out, json_err = run(capsys, "doctor", "--json")
    assert plain_code == json_code == exit_code
    assert plain_out == ""
    assert plain_err == json_err
    assert plain_err.startswith(f"error {code}: ")
    assert plain_err.count("\n") == 1
    assert "Traceback" not in plain_err
    told = last_json(json_out)
    assert told["error"]["code"] == code
    assert f"error {code}: {told['error']['message']}\n" == json_err


def test_message_of_several_lines_becomes_one(failing, capsys):
    failing(SakugaError("first\n  second\tthird"))
    _, _, err = run(capsys, "doctor")
    assert err == "error E_SAKUGA: first second third\n"


def test_debug_shows_the_traceback(failing, capsys):
    failing(ZeroDivisionError("a bug"))
    _, _, err = run(capsys, "--debug", "doctor")
    assert "Traceback" in err
    assert err.rstrip().rsplit("\n", 1)[-1].startswith("error E_INTERNAL: ZeroDivisionError: a bug")


def test_misspelt_setting_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("SAKUGA_LOG_LEVLE", "DEBUG")
    code, _, err = run(capsys, "models", "list")
    assert code == 2
    assert "SAKUGA_LOG_LEVEL" in err


def test_help_and_version(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    for exit_code in ("0 done", "1 some videos failed", "2 bad input", "3 the machine", "4 busy", "130 interrupted"):
        assert exit_code in " ".join(out.split())
    assert run(capsys, "--version")[1].startswith("sakuga ")


def test_help_loads_nothing_heavy():
    """What makes `sakuga --help` answer at once: none of the slow packages is imported for it."""
    script = (
        "import sys\nfrom sakuga.cli import main\ncode = main.run(['--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[] 0"


def test_reader_that_goes_away_is_no_error():
    script = "from sakuga.cli.main import main; main(['models', 'list', '--json'])"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert stderr == b""


def test_models_list_and_show(capsys):
    code, out, _ = run(capsys, "models", "list", "--json")
    names = [model["name"] for model in last_json(out)["models"]]
    assert code == 0
    assert names[0] == "wan-mini"
    code, out, _ = run(capsys, "models", "show", names[1], "--json")
    assert code == 0
    assert last_json(out)["model"]["files"]
    code, out, _ = run(capsys, "models", "show", "wan-mimi", "--json")
    assert code == 2
    assert "wan-mini" in last_json(out)["error"]["message"]


def test_nothing_to_fetch_for_the_embedded_model(capsys):
    code, out, _ = run(capsys, "models", "fetch", "wan-mini", "--json")
    assert code == 0
    assert last_json(out)["files"] == []


def test_every_error_code_is_documented_with_its_exit_code():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    errors = [SakugaError]
    for error in errors:
        errors += error.__subclasses__()
    for error in errors:
        if error.__module__ == "sakuga.errors":
            assert f"| `{error.code}` | {error.exit_code} |" in page, error.code


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(_surface(), indent=2) + "\n")
