"""`sakuga models`: the catalogue, one card, and the download of a card's files when somebody asks for it.

Run: pytest tests/unit/test_cli.py
"""

import contextlib
import dataclasses
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sakuga.cli.output import AsJson, finish

if TYPE_CHECKING:
    from sakuga.wan.cards import ModelCard

models_app = typer.Typer(help="List, show and fetch models.", no_args_is_help=True)


class Source(str, Enum):
    """Where DiffSynth's downloader looks."""

    modelscope = "modelscope"
    huggingface = "huggingface"


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show every model that Sakuga can load."""
    from sakuga.wan.catalogue import cards

    table = Table("name", "parameters", "tasks", "size", "frames", "title", box=None, pad_edge=False)
    for card in cards():
        size = f"{card.width}x{card.height}"
        table.add_row(card.name, _count(card.num_params), ", ".join(card.tasks), size, str(card.num_frames), card.title)
    finish({"models": [_as_dict(card) for card in cards()]}, table, as_json)


@models_app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(metavar="CARD", help="A name from `sakuga models list`.")],
    as_json: AsJson = False,
) -> None:
    """Show one card: its files, rules and defaults."""
    from sakuga.wan.catalogue import card

    found = card(name)
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in _as_dict(found).items():
        if key != "files":
            table.add_row(key, _plain(value))
    for file in found.files:
        table.add_row(f"file ({file.part})", f"{file.model_id}: {file.pattern}")
    finish({"model": _as_dict(found)}, table, as_json)


@models_app.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(metavar="CARD", help="A name from `sakuga models list`.")],
    out: Annotated[Path, typer.Option(help="Folder; what it has is not fetched again.")] = Path("models"),
    source: Annotated[Source, typer.Option(help="Where to fetch from.")] = Source.modelscope,
    as_json: AsJson = False,
) -> None:
    """Download the files of a card with DiffSynth's own downloader. The 14B models have 60 GB and more."""
    from sakuga.wan.catalogue import card
    from sakuga.wan.fetch import fetch_card

    found = card(name)
    if found.embedded:
        nothing = f"{found.name} is a part of the package; there is nothing to fetch"
        return finish({"model": found.name, "folder": None, "files": [], "message": nothing}, nothing, as_json)
    # Both downloaders print and draw bars on stdout, which belongs to our result.
    with contextlib.redirect_stdout(sys.stderr):
        files = fetch_card(found, out, source.value)
    text = "\n".join(str(path) for path in files)
    finish({"model": found.name, "folder": str(out), "files": [str(path) for path in files]}, text, as_json)


def _as_dict(card: "ModelCard") -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(card).items()}


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
