"""`sakuga estimate`: seconds and bytes of a render, before anything is loaded.

Run: pytest tests/unit/test_cost_fits.py
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sakuga.cli import options
from sakuga.cli.output import AsJson, duration, finish, tera

if TYPE_CHECKING:
    from sakuga.cost import Estimate
    from sakuga.recipe import RenderRecipe
    from sakuga.wan.cards import ModelCard

TASK_IMAGES = {"i2v": ("input_image",), "camera": ("input_image",), "flf2v": ("input_image", "end_image")}
TASK_VIDEOS = {"control": ("control_video",), "v2v": ("input_video",), "vace": ("vace_video",)}


TRAINING = "Training"
"""Panel of the options that need --train."""
SHARED = {"model", "gpu", "width", "height", "num_frames", "ulysses", "train", "as_json"}


def estimate(
    context: typer.Context,
    model: options.Model = "wan-mini",
    gpu: Annotated[
        str, typer.Option(help="rtx4090, rtx5090, l40s, a100, h100, h200, or here for this machine's CPU.")
    ] = "here",
    task: Annotated[str | None, typer.Option(help="Such as t2v, i2v or vace; the card's first if not given.")] = None,
    width: options.Width = None,
    height: options.Height = None,
    num_frames: options.NumFrames = None,
    steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    precision: options.Precision = None,
    tiling: Annotated[bool, typer.Option("--tiling", help="The VAE works in tiles.")] = False,
    memory: Annotated[str, typer.Option(help="resident, components, layers:BYTES or disk.")] = "resident",
    cfg: Annotated[int, typer.Option(help="2: the two prompts on different ranks.")] = 1,
    ulysses: Annotated[int, typer.Option(help="Ranks that share attention heads.")] = 1,
    ring: Annotated[int, typer.Option(help="Ranks that pass keys and values round.")] = 1,
    block_share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the DiT's blocks that a step cache runs.")
    ] = 1.0,
    train: Annotated[bool, typer.Option("--train", help="A training step instead of a render.")] = False,
    mode: Annotated[str, typer.Option(help="With --train: lora, full or distill.", rich_help_panel=TRAINING)] = "lora",
    rank: Annotated[int, typer.Option(help="Of the LoRA.", rich_help_panel=TRAINING)] = 16,
    targets: Annotated[
        str, typer.Option(help="Layers that the LoRA changes, with commas.", rich_help_panel=TRAINING)
    ] = "q,k,v,o,ffn.0,ffn.2",
    expert: Annotated[
        str | None, typer.Option(help="high or low, of a model with two; else both.", rich_help_panel=TRAINING)
    ] = None,
    base_precision: Annotated[
        str | None,
        typer.Option(help="Of the frozen base: fp32, bf16, int8 or fp8; bf16, here fp32.", rich_help_panel=TRAINING),
    ] = None,
    checkpointing: Annotated[str, typer.Option(help="none, recompute or offload.", rich_help_panel=TRAINING)] = "none",
    optimizer: Annotated[str, typer.Option(help="adamw, adamw8bit or muon.", rich_help_panel=TRAINING)] = "adamw",
    ema: Annotated[bool, typer.Option("--ema", help="Keep a mean of the weights.", rich_help_panel=TRAINING)] = False,
    micro_batch: Annotated[int, typer.Option(min=1, help="Samples of a GPU.", rich_help_panel=TRAINING)] = 1,
    num_gpus: Annotated[int, typer.Option(min=1, help="GPUs of the run.", rich_help_panel=TRAINING)] = 1,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Share weights out among the GPUs.", rich_help_panel=TRAINING)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say how long a render or a training step takes and how much memory, without loading a model."""
    _check_options(context, train=train)
    if train:
        from sakuga.cli.estimate_train import estimate_train

        settings = {"mode": mode, "rank": rank, "targets": targets.split(","), "expert": expert}
        settings |= {"base_precision": base_precision or ("fp32" if gpu == "here" else "bf16")}
        settings |= {"checkpointing": checkpointing, "optimizer": optimizer}
        settings = settings | {"model": model, "ema_decay": 0.999 if ema else None}
        ranks = {"micro_batch": micro_batch, "num_gpus": num_gpus, "fsdp": fsdp, "ulysses": ulysses}
        size = options.given(width=width, height=height, num_frames=num_frames)
        return estimate_train(settings, size, ranks, gpu, as_json)
    from sakuga.cost import Planned, advise, find_device
    from sakuga.cost import estimate as reckon
    from sakuga.parallel.plan import ParallelPlan
    from sakuga.wan.catalogue import card
    from sakuga.wan.memory import MemoryPlan

    found = card(model)
    given = options.given(
        width=width, height=height, num_frames=num_frames, num_inference_steps=steps, precision=precision
    )
    recipe = _recipe(found, task, given, guidance_scale, tiling=tiling)
    found.check_geometry(recipe.width, recipe.height, recipe.num_frames)
    plan = ParallelPlan(cfg=cfg, ulysses=ulysses, ring=ring)
    guided = recipe.guidance_scale != 1 or recipe.guidance_scale_2 not in (None, 1)
    plan.check(num_heads=found.dit.num_heads, guided=guided)
    execution = Planned(parallel=plan, memory=MemoryPlan.parse(memory))
    device = find_device(gpu)
    told = reckon(recipe, found, execution, device, block_share=block_share)
    advice = None
    if not told.fits:
        advice = advise(recipe, found, execution, device.memory_bytes)
    finish(_payload(told, recipe, advice), _text(told, recipe, advice), as_json)


def _check_options(context: typer.Context, *, train: bool) -> None:
    """A given option that would be of no account is refused."""
    for option in context.command.params:
        name, source = str(option.name), context.get_parameter_source(str(option.name))
        if source is None or source.name == "DEFAULT" or name in SHARED:
            continue
        if train != (getattr(option, "rich_help_panel", None) == TRAINING):
            belongs = "is of a render; leave it out with --train" if train else "is of a training step; give --train"
            raise typer.BadParameter(f"{option.opts[0]} {belongs}", ctx=context)


def _recipe(
    card: "ModelCard", task: str | None, given: dict[str, object], guidance: float | None, *, tiling: bool
) -> "RenderRecipe":
    """The card's defaults and what the user changed of them; contents do not matter for the cost."""
    from sakuga.errors import ModelError, did_you_mean, shown
    from sakuga.recipe import RenderRecipe

    task = task or card.tasks[0]
    if task not in card.tasks:
        hint = did_you_mean(task, card.tasks) or f"; it can do {', '.join(card.tasks)}"
        raise ModelError(f"{card.name} cannot do {shown(task)}{hint}")
    nothing = "0" * 64
    names = ("width", "height", "num_frames", "num_inference_steps", "flow_shift", "precision")
    plain = {name: getattr(card, name) for name in names} | given
    return RenderRecipe.from_dict(
        plain
        | {
            "model": card.name,
            "weights_sha256": nothing,
            "prompt": "A dancer with a green bob, quick star jumps boldly, leading to the left.",
            "seed": 0,
            "guidance_scale": card.guidance_scale if guidance is None else guidance,
            # One guidance given is meant for both experts, as for a render.
            "guidance_scale_2": card.guidance_scale_2 if guidance is None else None,
            "images": [{"role": role, "sha256": nothing} for role in TASK_IMAGES.get(task, ())],
            "videos": [{"role": role, "sha256": nothing} for role in TASK_VIDEOS.get(task, ())],
            "camera_direction": "Left" if task == "camera" else None,
            "tiling": {} if tiling else None,
        }
    )


def _payload(told: "Estimate", recipe: "RenderRecipe", advice: str | None) -> dict[str, object]:
    values = dataclasses.asdict(told)
    names = ("total_s", "step_s", "device_seconds", "peak_bytes", "fits")
    values |= {name: getattr(told, name) for name in names}
    values["execution"] = {"parallel": str(told.execution.parallel), "memory": str(told.execution.memory)}
    size = {"width": recipe.width, "height": recipe.height, "num_frames": recipe.num_frames}
    return {"recipe": size | {"steps": recipe.num_inference_steps}, "advice": advice, **values}


def _text(told: "Estimate", recipe: "RenderRecipe", advice: str | None) -> Group:
    from sakuga.cost.fits import gigabytes, spelled

    size = f"{recipe.width}x{recipe.height}, {recipe.num_frames} frames, {recipe.num_inference_steps} steps"
    ranks = told.execution.parallel.world_size
    where = escape(told.device) if ranks == 1 else f"{ranks} x {escape(told.device)} ({told.execution.parallel})"
    memory = spelled(told.execution.memory)
    head = Text.from_markup(f"[bold]{told.model}[/] in {told.precision} on [bold]{where}[/], memory {memory}\n{size}")
    table = Table("stage", "time", "weights", "work", "in all", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    seconds = (told.encode_s, told.denoise_s, told.decode_s)
    for stage, stage_s in zip(told.stages, seconds, strict=True):
        sizes = (gigabytes(value) for value in (stage.weight_bytes, stage.work_bytes, stage.total_bytes))
        table.add_row(stage.stage, duration(stage_s), *sizes)
    table.add_row(
        "[bold]total[/]", f"[bold]{duration(told.total_s)}[/]", "", "", f"[bold]{gigabytes(told.peak_bytes)}[/]"
    )
    facts = [
        (
            "step",
            f"{duration(told.step_s)}; {told.num_evaluations} evaluations in {told.num_steps} steps, "
            f"{tera(told.evaluation_flops)} TFLOP and {told.num_tokens:,} tokens each",
        ),
        ("weights", ", ".join(f"{part.name} {gigabytes(part.total_bytes)}" for part in told.parts)),
    ]
    if ranks > 1:
        exchanges, devices = duration(told.exchange_s), duration(told.device_seconds)
        facts.append(("ranks", f"{exchanges} of the time in exchanges; {devices} of all devices together"))
    if told.transfer_s:
        facts.append(("waiting", f"{duration(told.transfer_s)} of the time for weights on their way"))
    verdict = "fits" if advice is None else "does not fit"
    colour = "green" if advice is None else "red"
    rest = f" into {gigabytes(told.memory_bytes)}{'' if advice is None else f'; {advice}'}"
    facts.append(("memory", f"[{colour}]{verdict}[/]{escape(rest)}"))
    if told.measured:
        facts.append(("fitted", f"to {told.measured}"))
    facts += [("assumed", note) for note in told.assumed]
    more = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in facts:
        more.add_row(name, fact)
    return Group(head, Text(), table, Text(), more)
