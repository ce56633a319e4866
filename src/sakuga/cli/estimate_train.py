"""`sakuga estimate --train`: seconds and bytes of a training step, before anything is loaded.

Run: pytest tests/unit/test_cost_training.py
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sakuga.cli.output import duration, finish, tera

if TYPE_CHECKING:
    from sakuga.cost.training import TrainEstimate

PARTS = {
    "frozen": "frozen weights",
    "trained": "trained weights, fp32",
    "gradients": "gradients, fp32",
    "optimizer": "optimizer",
    "ema": "mean of the weights",
    "copies": "weights once more in bf16",
    "kept": "activations kept for the backward pass",
    "block": "activations of the block at work",
    "widest": "on top in the widest moment",
    "conditioning": "latents and prompt",
}


def estimate_train(
    settings: Mapping[str, object],
    size: Mapping[str, object],
    ranks: Mapping[str, object],
    gpu: str,
    as_json: bool,
) -> None:
    """Raises TrainError and others for what cannot be trained."""
    from sakuga.cost import find_device
    from sakuga.cost.training import TrainPlan, advise_training, estimate_training
    from sakuga.training.config import TrainConfig
    from sakuga.wan.catalogue import card

    config = TrainConfig.from_dict(settings)
    found = card(config.model)
    config.check_card(found)
    geometry = {name: getattr(found, name) for name in ("width", "height", "num_frames")} | dict(size)
    device = find_device(gpu)
    plan = TrainPlan(settings=config, norms_fp32=gpu != "here", **geometry, **ranks)  # ty: ignore[invalid-argument-type]
    told = estimate_training(plan, found, device)
    advice = None if told.fits else advise_training(plan, found, device.memory_bytes)
    finish(_payload(told, advice), _text(told, advice), as_json)


def _payload(told: "TrainEstimate", advice: str | None) -> dict[str, object]:
    values = dataclasses.asdict(told)
    values["parts"] |= {"peak": told.parts.peak}
    return values | {"step_s": told.step_s, "fits": told.fits, "advice": advice}


def _text(told: "TrainEstimate", advice: str | None) -> Group:
    from sakuga.cost.fits import gigabytes

    plan, settings, parts = told.plan, told.plan.settings, told.parts
    where = escape(told.device) if plan.num_gpus == 1 else f"{plan.num_gpus} x {escape(told.device)}"
    what = settings.mode if settings.mode == "full" else f"{settings.mode} of rank {settings.rank}"
    head = f"[bold]{told.model}[/], {what}, on [bold]{where}[/]\n{plan.width}x{plan.height}, {plan.num_frames} frames"
    if plan.micro_batch > 1:
        head += f", {plan.micro_batch} samples"
    table = Table("part", "memory", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, words in PARTS.items():
        if getattr(parts, name):
            table.add_row(words, gigabytes(getattr(parts, name)))
    table.add_row("[bold]peak[/]", f"[bold]{gigabytes(parts.peak)}[/]")
    facts = [
        ("step", f"{duration(told.step_s)}; {tera(told.step_flops)} TFLOP, {told.num_tokens:,} tokens a sample"),
        ("trained", f"{told.num_trained / 1e6:,.1f} M numbers; checkpointing {settings.checkpointing}"),
    ]
    if plan.num_gpus > 1:
        facts.append(("ranks", f"{duration(told.exchange_s)} of the step in exchanges"))
    if parts.host:
        facts.append(
            (
                "host",
                f"{gigabytes(parts.host)} of it for each GPU; {duration(told.transfer_s)} of the step on the way",
            )
        )
    verdict = "[green]fits[/]" if advice is None else "[red]does not fit[/]"
    facts.append(("memory", f"{verdict} into {gigabytes(told.memory_bytes)}{'' if advice is None else f'; {advice}'}"))
    facts.append(
        ("frames", f"{told.largest_num_frames} at most, all else as asked" if told.largest_num_frames else "none")
    )
    facts += [("assumed", note) for note in told.assumed]
    more = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in facts:
        more.add_row(name, fact)
    return Group(Text.from_markup(head), Text(), table, Text("The peak is the fuller of two moments."), Text(), more)
