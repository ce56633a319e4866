"""`sakuga calibrate cache`: TeaCache's coefficients for a model that DiffSynth has none for.

Run: pytest tests/unit/test_calibrate.py
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sakuga.cli import options
from sakuga.cli.output import AsJson, finish, stderr_console

if TYPE_CHECKING:
    from sakuga.engine.calibrate import Task
    from sakuga.wan.cards import ModelCard

calibrate_app = typer.Typer(help="Fit what a model needs measured once.", no_args_is_help=True)


@calibrate_app.command("cache")
def calibrate_cache(
    model: options.Model = "wan-mini",
    weights: options.Weights = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt a line; without it wan-mini takes drawn dancers.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="First frame of every prompt, for models that need one.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Dancers, each rendered from text and from an image.")] = 4,
    steps: Annotated[
        list[int] | None, typer.Option("--num-inference-steps", "--steps", help="Denoise steps; may be repeated.")
    ] = None,
    precision: options.Precision = None,
    device: options.Device = "cpu",
    out: Annotated[Path, typer.Option(help="JSON file for coefficients and fit.")] = Path("teacache.json"),
    as_json: AsJson = False,
) -> None:
    """Fit TeaCache's polynomial to full renders; the line that is printed goes into the model's card."""
    from sakuga.engine.calibrate import ObservingEngine, calibrate_cache, drawn_tasks
    from sakuga.engine.resolve import located
    from sakuga.media import write_json_atomic
    from sakuga.wan.catalogue import card
    from sakuga.wan.loading import load_model

    found = card(model)
    if prompts is not None:
        tasks = _tasks(found, weights, prompts, image, steps or [found.num_inference_steps], precision)
    else:
        _check_drawn(found, image)
        tasks = drawn_tasks(found, located(found, weights).sha256, count, steps or [50])
    loaded = load_model(located(found, weights), device=device, precision=precision or found.precision)
    engine = ObservingEngine(loaded)
    columns = TextColumn("calibrate"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=stderr_console, transient=True, disable=not stderr_console.is_terminal) as bar:
        task = bar.add_task("", total=len(tasks))
        calibration = calibrate_cache(engine, tasks, lambda done: bar.update(task, completed=done))
    payload = calibration.as_dict()
    write_json_atomic(out, payload)
    fit = calibration.fit
    text = (
        f"{calibration.num_renders} renders, {fit.num_pairs} pairs of changes; R² {fit.r_squared:.4f}, "
        f"mean error {fit.mean_rel_error:.1%}\nteacache_fitted={fit.coefficients},\n{out}"
    )
    finish(payload, escape(text), as_json)


def _check_drawn(card: "ModelCard", image: str | None) -> None:
    from sakuga.errors import InputError

    if not card.embedded:
        raise InputError(f"{card.name} knows no drawn dancers; give --prompts FILE with one prompt a line")
    if image is not None:
        raise InputError("--image goes with --prompts; drawn dancers bring their own")


def _tasks(
    card: "ModelCard", weights: str | None, prompts: Path, image: str | None, steps: list[int], precision: str | None
) -> "list[Task]":
    """A recipe for each prompt and number of steps; the seed is the prompt's line."""
    from sakuga.engine.resolve import resolve
    from sakuga.errors import InputError
    from sakuga.recipe import parse_request

    try:
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {prompts} cannot be read: {error}; give a text file") from error
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"--prompts {prompts} is empty; write one prompt a line")
    tasks = []
    for num_steps in steps:
        for seed, prompt in enumerate(lines):
            fields: dict[str, object] = {"prompt": prompt, "num_inference_steps": num_steps, "seed": seed}
            fields |= options.given(model=card.name, input_image=image, precision=precision)
            recipe, inputs, _ = resolve(parse_request(fields), card, Path.cwd(), weights)
            tasks.append((recipe, inputs))
    return tasks
