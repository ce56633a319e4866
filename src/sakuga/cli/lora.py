"""`sakuga lora`: what a LoRA file holds, and the same LoRA in another program's key style.

Run: pytest tests/unit/test_lora_convert.py
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sakuga.cli import options
from sakuga.cli.output import AsJson, finish

lora_app = typer.Typer(help="Show and convert LoRA files.", no_args_is_help=True)

LoraPath = Annotated[Path, typer.Argument(metavar="LORA", help="A safetensors file, or a folder of peft.")]


@lora_app.command("convert")
def convert(
    source: LoraPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A file; for peft a folder.")],
    to: Annotated[str, typer.Option(help="diffsynth, kohya, diffusers or peft.")],
    model: options.Model = "wan-mini",
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a LoRA in the key style of another program."""
    from sakuga.wan.catalogue import card
    from sakuga.wan.lora_convert import card_shapes, convert_lora, lora_path
    from sakuga.wan.lora_file import fit_lora

    lora = fit_lora(lora_path(source), card_shapes(card(model)))
    files = convert_lora(lora, to, out, force=force)
    text = "\n".join(escape(str(path)) for path in files)
    finish({"style": to, "layers": len(lora.changes), "files": [str(path) for path in files]}, text, as_json)


@lora_app.command("show")
def show(source: LoraPath, model: options.Model = "wan-mini", as_json: AsJson = False) -> None:
    """Show what a LoRA changes, in which key style, and its passport."""
    from sakuga.wan.catalogue import card
    from sakuga.wan.lora_convert import card_shapes, describe_lora, lora_path
    from sakuga.wan.lora_file import fit_lora

    told = describe_lora(fit_lora(lora_path(source), card_shapes(card(model))))
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in told.items():
        if isinstance(value, dict):
            for inner, part in value.items():
                table.add_row(f"{name} {inner}".replace("_", " "), escape(_plain(part)))
        else:
            table.add_row(name.replace("_", " "), escape(_plain(value)))
    finish({"lora": told}, table, as_json)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
