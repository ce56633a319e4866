"""`sakuga train`: a LoRA, a fine-tuning or a distillation on a prepared data set, in this process or on Ray Train.

Run: pytest tests/unit/test_cli_train.py
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sakuga import settings
from sakuga.cli import options
from sakuga.cli.output import AsJson, finish, stderr_console
from sakuga.errors import InputError, TrainError, shown

if TYPE_CHECKING:
    from sakuga.training.run import TrainJob, TrainResult

REFRESH_S = 0.5
HELD_OUT_DISTILLING = 2
"""Test samples of a distillation's held-out loss: each question is a walk of the teacher, seven evaluations for one."""
PREPARED_NAME = "prepared"
"""Folder below OUT for a data set that was not prepared before."""


def train(
    data: Annotated[Path, typer.Option(help="A prepared folder, or a data set, which is then prepared first.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same one goes on where it stopped.")],
    model: options.Model = "wan-mini",
    weights: options.Weights = None,
    mode: Annotated[str, typer.Option(help="lora, full, or distill: a LoRA for few steps without guidance.")] = "lora",
    expert: Annotated[
        str | None, typer.Option(help="high or low noise of a model with two; both if not given.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Of the LoRA.")] = 16,
    alpha: Annotated[float | None, typer.Option(help="The LoRA counts alpha / rank; the rank if not given.")] = None,
    targets: Annotated[str, typer.Option(help="Layers, with commas; k_img,v_img too on image models.")] = (
        "q,k,v,o,ffn.0,ffn.2"
    ),
    base_precision: Annotated[str, typer.Option(help="Of the frozen base: fp32, bf16, int8 or fp8.")] = "bf16",
    start_lora: Annotated[Path | None, typer.Option(help="LoRA file to go on from.")] = None,
    steps: Annotated[int, typer.Option("--steps", "--num-steps", help="Of training.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Samples of a step, over all workers.")] = 8,
    micro_batch_size: Annotated[int, typer.Option(min=1, help="Samples in a worker's memory at a time.")] = 8,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    optimizer: Annotated[str, typer.Option(help="adamw, adamw8bit or muon.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Of the optimizer.")] = 0.01,
    schedule: Annotated[str, typer.Option(help="cosine or constant, after the warm-up.")] = "cosine",
    warmup_steps: Annotated[int, typer.Option(help="In which the rate grows.")] = 20,
    max_grad_norm: Annotated[float, typer.Option(help="Longer gradients are clipped.")] = 1.0,
    ema_decay: Annotated[float | None, typer.Option(help="Save a running mean of the weights, such as 0.99.")] = None,
    flow_shift: options.FlowShift = None,
    loss_weighting: Annotated[str, typer.Option(help="wan (DiffSynth's over noise levels) or none.")] = "wan",
    text_dropout: Annotated[float, typer.Option(help="Share of samples that see the empty prompt.")] = 0.1,
    layer_weight: Annotated[
        list[str] | None, typer.Option(help="shape=X, colour=X or motion=X: such places count 1 + X; may be repeated.")
    ] = None,
    distill_steps: Annotated[int, typer.Option(help="Steps that a distilled LoRA is made for.")] = 4,
    distill_guidance: Annotated[float | None, typer.Option(help="Guidance folded in; the card's if not given.")] = None,
    distill_intervals: Annotated[int, typer.Option(help="Places that are trained within each of those steps.")] = 4,
    teacher_steps: Annotated[int, typer.Option(help="The teacher's, from one place to the next.")] = 3,
    distill_source: Annotated[
        str, typer.Option(help="data: noised samples; teacher: what it passes on its way from noise.")
    ] = "data",
    still_share: Annotated[float, typer.Option(help="Of a distillation: the first steps see stills.")] = 0.25,
    style_lora: Annotated[Path | None, typer.Option(help="LoRA beside the base of a distillation, frozen.")] = None,
    style_share: Annotated[float, typer.Option(help="Of the micro-batches that it is there for.")] = 0.5,
    checkpointing: Annotated[str, typer.Option(help="none, recompute or offload.")] = "none",
    compile: options.Compile = False,
    seed: Annotated[int, typer.Option(help="Of order, noise and adapters.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 250,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between two held-out losses.")] = 100,
    validate: Annotated[int, typer.Option(min=0, help="Test samples rendered with each checkpoint; 0: none.")] = 2,
    max_minutes: Annotated[float | None, typer.Option(help="Save and end after so long.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE: such rows of a data set that is prepared here.")
    ] = None,
    num_workers: Annotated[
        str,
        typer.Option("--num-workers", "--workers", help="On Ray: N, or MIN:MAX to grow and shrink; 0: this process."),
    ] = "0",
    num_threads: options.NumThreads = None,
    sequence: Annotated[int, typer.Option(min=1, help="Workers that share a sample's tokens.")] = 1,
    shard: Annotated[bool, typer.Option("--shard", help="Spread weights over the workers (FSDP2).")] = False,
    address: Annotated[
        str, typer.Option(help="Ray cluster: local starts one, auto finds one, or HOST:PORT.")
    ] = "local",
    device: options.WorkerDevice = "cpu",
    register: Annotated[str | None, typer.Option(help="Name under which the farm of SAKUGA_URL gets the LoRA.")] = None,
    trigger: Annotated[list[str] | None, typer.Option(help="Word that calls the style; goes into the file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train on a data set; run again, it goes on where it stopped."""
    # Before torch is loaded: threads that spin at barriers made it eight times slower beside another busy process.
    settings.set_for_libraries({"OMP_WAIT_POLICY": "passive"})
    from sakuga.training.config import TrainConfig
    from sakuga.training.loop import LoopOptions
    from sakuga.training.run import TrainJob
    from sakuga.training.validation import ValidationOptions

    config = TrainConfig(
        model=model,
        mode=mode,
        expert=expert,
        rank=rank,
        alpha=alpha,
        targets=tuple(name.strip() for name in targets.split(",") if name.strip()),
        base_precision="fp32" if mode == "full" and base_precision == "bf16" else base_precision,
        num_steps=steps,
        global_batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup_steps=warmup_steps,
        max_grad_norm=max_grad_norm,
        ema_decay=ema_decay,
        seed=seed,
        flow_shift=5.0 if flow_shift is None else flow_shift,
        loss_weighting=loss_weighting,
        text_dropout=text_dropout,
        layer_weights={
            name: _number(name, value) for name, value in _pairs(layer_weight or [], "layer-weight").items()
        },
        distill_steps=distill_steps,
        distill_guidance=distill_guidance,
        distill_intervals=distill_intervals,
        teacher_steps=teacher_steps,
        distill_source=distill_source,
        still_share=still_share,
        style_share=style_share,
        checkpointing=checkpointing,
        compile=compile,
    )
    if register:
        from sakuga.cli.client import Farm

        Farm(None, None)  # a key that is lacking is told before the hours of training
    prepared = _prepared(data, out, model, weights, dict(_pairs(where or [], "where")), device)
    loop = LoopOptions(save_every=save_every, evaluate_every=evaluate_every, trigger_words=tuple(trigger or ()))
    job = TrainJob(
        config=config,
        prepared=str(prepared),
        out=str(out),
        weights=weights,
        device=device,
        start_lora=None if start_lora is None else str(start_lora),
        style_lora=None if style_lora is None else str(style_lora),
        micro_batch_size=micro_batch_size,
        sequence=sequence,
        sharded=shard,
        loop=loop if mode != "distill" else dataclasses.replace(loop, max_held_out=HELD_OUT_DISTILLING),
        validation=ValidationOptions(num_samples=validate) if validate else None,
        max_seconds=None if max_minutes is None else 60 * max_minutes,
    )
    result = _run(job, num_workers, num_threads, address)
    registered = _register(result, register, model) if register else None
    finish(
        result.as_dict() | ({"registered": registered} if registered else {}),
        escape(_text(result, registered)),
        as_json,
    )


def _prepared(data: Path, out: Path, model: str, weights: str | None, where: dict[str, str], device: str) -> Path:
    """The folder itself, or the one that its data set is prepared in."""
    from sakuga.training.prepared import INDEX_NAME

    if (data / INDEX_NAME).is_file():
        if where:
            raise InputError(f"{shown(data)} is prepared already, so its rows are chosen; leave out --where")
        return data
    from sakuga.farm.prepare import PrepareRequest, prepare

    target = out / PREPARED_NAME
    stderr_console.print(f"preparing {escape(str(data))} into {escape(str(target))}")
    prepare(PrepareRequest(data=data, out=target, model=model, weights=weights, where=where, device=device))
    return target


def _run(job: "TrainJob", num_workers: str, num_threads: int | None, address: str) -> "TrainResult":
    import torch

    with train_bar(Path(job.out), job.config.num_steps):
        if num_workers == "0":
            from sakuga.farm.lock import folder_lock
            from sakuga.media import check_output_dir
            from sakuga.training.run import run_local

            chosen = num_threads or settings.from_environment().num_threads
            if chosen:
                torch.set_num_threads(chosen)
            check_output_dir(Path(job.out))
            with folder_lock(Path(job.out)):
                return run_local(job)
        from sakuga.farm.train import Workers, run_training

        workers = dataclasses.replace(Workers.parse(num_workers), num_threads=num_threads)
        return run_training(job, workers, address=address)


def _register(result: "TrainResult", name: str, model: str) -> list[str]:
    """Give the run's LoRAs to the farm; what it calls them. Raises FarmError, InputError."""
    from sakuga.cli.client import Farm

    loras = [path for path in result.files if path.name.startswith("lora")]
    if not loras:
        raise InputError(f"the run in {result.out} gave no LoRA to register; a full fine-tuning is a model of its own")
    farm = Farm(None, None)
    return [
        farm.upload_lora(path, f"{name}{path.stem.removeprefix('lora').replace('_', '-')}", model) for path in loras
    ]


def _text(result: "TrainResult", registered: list[str] | None) -> str:
    held_out = result.metrics.get("heldout/loss")
    learnt = "" if held_out is None else f", held-out loss {held_out:.4f}"
    score = result.metrics.get("validation/psnr_db")
    rendered = "" if score is None else f", validation {score:.2f} dB"
    files = ", ".join(str(path) for path in result.files)
    known = f"; registered as {', '.join(registered)}" if registered else ""
    return f"{result.steps} steps in {result.seconds:.0f} s{learnt}{rendered}: {files}{known}"


@contextlib.contextmanager
def train_bar(out: Path, num_steps: int) -> Iterator[None]:
    """A bar that follows OUT/log.jsonl, wherever the run is; nothing where there is no terminal."""
    from sakuga.training.runlog import read_log

    if not stderr_console.is_terminal:
        yield
        return
    columns = (TextColumn("train"), BarColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn())
    ended = threading.Event()
    with Progress(*columns, console=stderr_console, transient=True) as progress:
        bar = progress.add_task("", total=num_steps, facts="loading")

        def follow() -> None:
            while not ended.wait(REFRESH_S):
                lines = list(read_log(out))
                if lines:
                    progress.update(bar, completed=lines[-1]["step"], facts=_facts(lines))

        thread = threading.Thread(target=follow, name="train-bar", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _facts(lines: list[dict]) -> str:
    """The newest of every figure that a person watches."""
    newest: dict[str, float] = {}
    for line in lines:
        newest |= line
    parts = [f"step {newest['step']}"]
    for name, label, form in (
        ("loss", "loss", ".4f"),
        ("heldout/loss", "held out", ".4f"),
        ("validation/psnr_db", "validation", ".2f"),
        ("step_s", "s/step", ".2f"),
    ):
        if name in newest:
            parts.append(f"{label} {newest[name]:{form}}")
    return ", ".join(parts)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise TrainError(f"layer_weights {name} is {shown(text)}; it must be a number from 0 on") from None


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs, strict=True):
        if not name or not equals:
            raise InputError(f"--{option} is {shown(text)}; write NAME=VALUE")
    return {name: value for name, _, value in pairs}
