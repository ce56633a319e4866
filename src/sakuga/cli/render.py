"""`sakuga render`: one video in this process, with a bar.

Run: pytest tests/unit/test_cli_commands.py
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sakuga import settings
from sakuga.cli import options
from sakuga.cli.output import AsJson, finish, stderr_console

if TYPE_CHECKING:
    from sakuga.farm.worker import EngineOptions, OnStep

NAME_CHARS = 16
"""Of the render key, for a file name: 64 bits, as good as unique in one folder."""


def render(
    prompt: Annotated[str, typer.Argument(help="What the video shows, in a sentence.")],
    out: Annotated[Path, typer.Option(help="Folder for the video, thumbnail, spritesheet and receipt.")] = Path("out"),
    name: Annotated[str | None, typer.Option(help="File name without suffix; the render key if not given.")] = None,
    model: options.Model = "wan-mini",
    weights: options.Weights = None,
    image: Annotated[str | None, typer.Option(help="First frame: JPEG, PNG or WEBP.")] = None,
    end_image: Annotated[str | None, typer.Option(help="Last frame.")] = None,
    reference_image: Annotated[str | None, typer.Option(help="Who or what to show, for models that take it.")] = None,
    video: Annotated[str | None, typer.Option(help="Video to start from; see --denoising-strength.")] = None,
    control_video: Annotated[str | None, typer.Option(help="Skeleton or depth, for control models.")] = None,
    vace_video: Annotated[str | None, typer.Option(help="Video to edit, for VACE models.")] = None,
    vace_mask: Annotated[str | None, typer.Option(help="Where to edit it.")] = None,
    lora: options.Loras = None,
    negative_prompt: options.NegativePrompt = None,
    width: options.Width = None,
    height: options.Height = None,
    num_frames: options.NumFrames = None,
    fps: options.Fps = None,
    steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    flow_shift: options.FlowShift = None,
    denoising_strength: Annotated[float | None, typer.Option(help="0 to 1, how much of --video to change.")] = None,
    camera_direction: options.CameraDirection = None,
    camera_speed: options.CameraSpeed = None,
    motion_bucket_id: options.MotionBucket = None,
    seed: options.Seed = None,
    precision: options.Precision = None,
    attention: options.AttentionName = None,
    step_cache: options.StepCacheText = None,
    device: options.Device = "cpu",
    tiling: options.Tiling = False,
    memory: options.Memory = "resident",
    compile: options.Compile = False,
    hot_loras: options.HotLoras = False,
    unverified: options.Unverified = False,
    as_json: AsJson = False,
) -> None:
    """Render one video in this process."""
    fields = options.given(
        id=name,
        prompt=prompt,
        model=model,
        input_image=image,
        end_image=end_image,
        reference_image=reference_image,
        input_video=video,
        control_video=control_video,
        vace_video=vace_video,
        vace_mask=vace_mask,
        loras=lora,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        flow_shift=flow_shift,
        denoising_strength=denoising_strength,
        camera_direction=camera_direction,
        camera_speed=camera_speed,
        motion_bucket_id=motion_bucket_id,
        seed=random.SystemRandom().randrange(2**32) if seed is None else seed,
        precision=precision,
        attention=attention,
        step_cache=step_cache,
        tiling={} if tiling else None,
    )
    from sakuga.farm.worker import EngineOptions

    engine = EngineOptions(memory=memory, compile=compile, hot_loras=hot_loras, allow_unverified=unverified)
    name, receipt = _render(fields, out, name, weights, device, engine)
    picture = [".png"] if (out / f"{name}.png").is_file() else []  # of a render of one frame
    files = [f"{out / name}{suffix}" for suffix in (*picture, ".mp4", ".webp", ".sprites.webp", ".json")]
    payload = {"key": receipt["key"], "name": name, "files": files, "receipt": receipt}
    notes = receipt.get("notes")
    remarks = [f"note: {note}" for note in notes] if isinstance(notes, list) else []
    finish(payload, escape("\n".join([f"key {receipt['key']}", *files, *remarks])), as_json)


def _render(
    fields: dict[str, object],
    out: Path,
    name: str | None,
    weights: str | None,
    device: str,
    engine: "EngineOptions",
) -> tuple[str, Mapping[str, object]]:
    """Check, load, render and write one request, with the renderer of bulk runs; its name and receipt."""
    from sakuga.farm.worker import RenderPlan
    from sakuga.media import check_output_dir
    from sakuga.recipe import parse_request

    request = parse_request(fields)
    out = check_output_dir(out).resolve()
    plan = RenderPlan(
        out=str(out),
        base_dir=str(Path.cwd()),
        weights=weights,
        device=device,
        engine=engine,
        num_threads=settings.from_environment().num_threads,
    )
    renderer = plan.make_renderer()
    name = name or renderer.key(request)[:NAME_CHARS]
    with step_bar() as on_step:
        return name, renderer.render(request, name, on_step)


@contextlib.contextmanager
def step_bar() -> "Iterator[OnStep]":
    """A bar on stderr that follows one render: stage, step n/N, s/step, time left; nothing without a terminal."""
    columns = (
        TextColumn("{task.description:>7}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console, transient=True, disable=not stderr_console.is_terminal) as progress:
        task = progress.add_task("load", total=1, pace="")

        def on_step(stage: str, step: int, num_steps: int, step_s: float | None) -> None:
            pace = f"{step_s:.2f} s/step" if step_s is not None else ""
            progress.update(task, description=stage, completed=step, total=num_steps, pace=pace)

        yield on_step
