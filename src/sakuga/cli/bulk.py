"""`sakuga bulk`: every row of a manifest, on a Ray cluster in this process or on one that runs already.

Run: pytest tests/unit/test_cli_commands.py
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sakuga.cli import options
from sakuga.cli.output import AsJson, finish


def bulk(
    manifest: Annotated[Path, typer.Argument(help="One video a row: .jsonl, .csv, .tsv or .parquet.")],
    out: Annotated[Path, typer.Option(help="Folder for the videos; what it has already is not rendered again.")] = (
        Path("out")
    ),
    num_workers: Annotated[int, typer.Option("--num-workers", "--workers", min=1, help="Engines side by side.")] = 1,
    num_threads: options.NumThreads = None,
    resume: Annotated[bool, typer.Option(help="Skip what an earlier run finished.")] = True,
    address: Annotated[
        str, typer.Option(help="Ray cluster: local starts one, auto finds one, or HOST:PORT.")
    ] = "local",
    model: Annotated[str | None, typer.Option(help="Default for rows without one: a card's name.")] = None,
    weights: options.Weights = None,
    lora: options.Loras = None,
    negative_prompt: options.NegativePrompt = None,
    width: options.Width = None,
    height: options.Height = None,
    num_frames: options.NumFrames = None,
    fps: options.Fps = None,
    steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    flow_shift: options.FlowShift = None,
    seed: options.Seed = None,
    precision: options.Precision = None,
    attention: options.AttentionName = None,
    step_cache: options.StepCacheText = None,
    device: options.WorkerDevice = "cpu",
    tiling: options.Tiling = False,
    memory: options.Memory = "resident",
    compile: options.Compile = False,
    hot_loras: options.HotLoras = False,
    unverified: options.Unverified = False,
    as_json: AsJson = False,
) -> None:
    """Render a manifest. Options fill what a row leaves out; run again, it renders what is missing or failed."""
    from sakuga.cli.bars import bulk_bars
    from sakuga.farm.bulk import run_bulk
    from sakuga.farm.worker import EngineOptions

    defaults = options.given(
        model=model,
        loras=lora,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        flow_shift=flow_shift,
        seed=seed,
        precision=precision,
        attention=attention,
        step_cache=step_cache,
        tiling={} if tiling else None,
    )
    with bulk_bars(out):
        summary = run_bulk(
            manifest,
            out,
            defaults=defaults,
            num_workers=num_workers,
            num_threads=num_threads,
            weights=weights,
            device=device,
            engine=EngineOptions(memory=memory, compile=compile, hot_loras=hot_loras, allow_unverified=unverified),
            resume=resume,
            address=address,
        )
    counts = ", ".join(f"{getattr(summary, name)} {name}" for name in ("done", "skipped", "failed"))
    text = f"{counts} of {summary.videos} videos in {summary.out} ({summary.videos_per_min:g} videos/min)"
    finish(summary.as_dict(), escape(text), as_json, exit_code=summary.exit_code)
