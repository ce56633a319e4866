"""One CUDA GPU: seconds, TFLOP/s and bytes of a LoRA step of Wan2.1 1.3B and 14B, ours and stock DiffSynth's in turn.

    python benchmarks/gpu_train.py --json                        # both models, about 6 minutes on an H200
    python benchmarks/gpu_train.py --models 14b --skip-stock     # one model, ours alone
    python benchmarks/gpu_train.py --attention cudnn --compile   # with another kernel, and compiled blocks
    python benchmarks/gpu_train.py --tiny --device cpu           # the same code at toy shapes, to see that it runs

Needs no network, no weights and no Ray: random weights in the real shapes, rank 32 on all linear layers of the blocks,
bf16 base, batch 1, checkpointing recompute, a step from cached latents to the optimizer's. Both sides share the base's
weights. Stock DiffSynth is its `FlowMatchSFTLoss` with `use_gradient_checkpointing` and bf16 adapters, as its script
trains, on PyTorch's attention. Operations are those of `cost/training.py`, the recomputed ones included.
`attention` times the kernels alone, forward and backward, on all tokens of the model.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from common import machine_facts, print_result  # benchmarks/common.py
from gpu_model import Bench, Shape, freed, make_dit

from sakuga.cost.training import TrainPlan, step_work, train_bytes
from sakuga.training.batches import Batches
from sakuga.training.config import TrainConfig
from sakuga.training.memory import fullest_plan
from sakuga.training.prepared import LatentCache, PreparedSample, PreparedSet
from sakuga.training.trainer import Trainer
from sakuga.training.world import World
from sakuga.wan.attention import attention, kernel, usable_kernels
from sakuga.wan.cards import ModelCard
from sakuga.wan.catalogue import card
from sakuga.wan.loading import LoadedModel, stdout_to_log

if TYPE_CHECKING:
    from diffsynth.pipelines.wan_video import WanVideoPipeline

MODELS = {"1.3b": card("wan2.1-t2v-1.3b"), "14b": card("wan2.1-t2v-14b")}
RANK = 32
BARS = {"1.3b": {"seconds": 3.0}, "14b": {"seconds": 18.0, "tflops": 360.0}}
"""Aims for 832x480 and 81 frames on an H200: seconds at most, TFLOP/s at least."""
MEMORY_BAR = 0.05
"""Of the prediction."""
WARM_UP = 2
"""Steps that are not counted: the optimizer's states come with the first, and compiled blocks."""
KERNELS = ("sdpa", "cudnn", "flash2")
"""PyTorch's, which have a backward."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for on the command line."""

    size: tuple[int, int, int]
    """Width, height and frames."""
    num_steps: int
    rank: int
    attention: str | None
    compiled: bool
    stock: bool


def toy(real: ModelCard) -> ModelCard:
    shape = dataclasses.replace(real.dit, dim=96, ffn_dim=192, num_heads=2, num_layers=2, text_dim=16)
    return dataclasses.replace(real, dit=shape, tokenizer_max_tokens=16)


def batches_of(model: ModelCard, name: str, options: Options, bench: Bench, folder: Path) -> Batches:
    """One clip of noise with a prompt of full length, from a cache as every run has it."""
    width, height, num_frames = options.size
    rng = torch.Generator().manual_seed(0)
    cache = LatentCache(folder / "cache", folder)
    latents = torch.randn(model.latent_shape(width, height, num_frames)[1:], generator=rng).half()
    text = torch.randn(model.tokenizer_max_tokens, model.dit.text_dim, generator=rng).half()
    cache.put("videos", "clip", {"latents_CThw": latents})
    cache.put("texts", "text", {"context_LD": text})
    sample = PreparedSample(name="clip", split="train", video_key="clip", text_key="text", prompt="", width=width,
                            height=height, num_frames=num_frames, fps=16.0)  # fmt: skip
    prepared = PreparedSet(model=name, weights_sha256="", task="t2v", samples=(sample,), empty_text_key="text",
                           cache="cache")  # fmt: skip
    config = TrainConfig(model=name, rank=options.rank, global_batch_size=1, checkpointing="recompute",
                         compile=options.compiled)  # fmt: skip
    return Batches(prepared, cache, config, model, bench.device, micro_batch_size=1)


def pipeline(dit: torch.nn.Module, bench: Bench) -> WanVideoPipeline:
    from diffsynth.pipelines.wan_video import WanVideoPipeline

    with stdout_to_log():
        pipe = WanVideoPipeline(device=str(bench.device), torch_dtype=bench.dtype)
    pipe.dit = dit  # ty: ignore[invalid-assignment]  # a WanModel, of the shapes that are asked for
    pipe.scheduler.set_timesteps(1000, training=True)
    return pipe


def sharing_weights(dit: torch.nn.Module) -> torch.nn.Module:
    """Modules of its own, so that adapters go into one and not the other, on the same weights."""
    return copy.deepcopy(dit, {id(parameter): parameter for parameter in dit.parameters()})


def stock_step(dit: torch.nn.Module, batches: Batches, bench: Bench) -> Callable[[], None]:
    from diffsynth.diffusion.loss import FlowMatchSFTLoss
    from diffsynth.diffusion.training_module import DiffusionTrainingModule

    config, pipe = batches.config, pipeline(dit, bench)
    DiffusionTrainingModule().add_lora_to_model(dit, list(config.targets), config.rank, upcast_dtype=bench.dtype)
    trained = [parameter for parameter in dit.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    sample = batches.samples[0]
    latents = batches.video(sample)["latents_CThw"][None].to(bench.device, bench.dtype)
    context = batches.entry("texts", sample.text_key)["context_LD"][None].to(bench.device, bench.dtype)

    def run() -> None:
        with attention("sdpa"):
            loss = FlowMatchSFTLoss(pipe, input_latents=latents, context=context, use_gradient_checkpointing=True)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def seconds_of(step: Callable[[], object], bench: Bench) -> float:
    bench.wait()
    began = time.monotonic()
    step()
    bench.wait()
    return time.monotonic() - began


def allocated(bench: Bench) -> int:
    return torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else 0


def measured(seconds: Sequence[float], plan: TrainPlan, model: ModelCard, peak: int | None) -> dict[str, object]:
    median = statistics.median(seconds)
    found: dict[str, object] = {"seconds": round(median, 4), "all_seconds": [round(one, 4) for one in seconds]}
    return found | {"tflops": round(step_work(plan, model).flops / median / 1e12, 2), "peak_bytes": peak}


def model_part(name: str, model: ModelCard, options: Options, bench: Bench, folder: Path) -> dict[str, object]:
    """Ours alone for its peak, then both in turn, so that a GPU that grows warm slows both."""
    batches = batches_of(model, MODELS[name].name, options, bench, folder)
    shape = Shape(card=model, latents=model.latent_shape(*options.size)[2:])
    dit = make_dit(shape, bench)
    twin = sharing_weights(dit) if options.stock else None
    base_bytes = allocated(bench)
    loaded = LoadedModel(card=model, pipe=pipeline(dit, bench), precision="bf16", weights_sha256="", file_sha256={})
    trainer = Trainer(loaded, batches, batches.config, World())
    if options.attention is not None:
        chosen = kernel(options.attention)
        trainer.module._kernel = lambda q, k, v, heads: chosen(q.to(v.dtype), k.to(v.dtype), v, heads)
    for _ in range(WARM_UP):
        trainer.train_step()
    plan = fullest_plan(batches, World())
    predicted, peak = train_bytes(plan, model).peak, bench.peak_bytes(trainer.train_step)
    found: dict[str, object] = {"num_tokens": shape.num_tokens, "predicted_bytes": predicted}
    if peak is not None:
        found |= {"peak_ratio": round(peak / predicted, 4), "within_bar": abs(peak / predicted - 1) <= MEMORY_BAR}
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    peaks = {"ours": peak}
    steps: dict[str, Callable[[], object]] = {"ours": trainer.train_step}
    if twin is not None:
        beside = allocated(bench) - base_bytes  # our adapters and their moments
        steps["stock"] = stock_step(twin, batches, bench)
        for _ in range(WARM_UP - 1):
            steps["stock"]()
        whole = bench.peak_bytes(steps["stock"])
        peaks["stock"] = None if whole is None else whole - beside
    for _ in range(options.num_steps):
        for side, step in steps.items():
            times[side].append(seconds_of(step, bench))
    for side in steps:
        found[side] = measured(times[side], plan, model, peaks[side])
    if twin is not None:
        found["speedup"] = round(statistics.median(times["stock"]) / statistics.median(times["ours"]), 3)
    return found


def attention_part(model: ModelCard, options: Options, bench: Bench) -> dict[str, dict[str, object]]:
    """Forward and backward of every kernel of PyTorch's, at self-attention's shape; 2 and 5 products."""
    frames, rows, columns = model.latent_shape(*options.size)[2:]
    num_tokens, heads = frames * rows * columns // 4, model.dit.num_heads
    q, k, v, gradient = (bench.randn(1, num_tokens, model.dit.dim, seed=seed) for seed in range(4))
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    product_flops = 2 * num_tokens**2 * model.dit.dim
    found: dict[str, dict[str, object]] = {}
    for name in usable_kernels(device=bench.device, head_dim=model.dit.head_dim, dtype=bench.dtype):
        if name not in KERNELS:
            continue
        run = kernel(name)
        try:
            with torch.no_grad():
                forward_s = bench.seconds(lambda run=run: run(*inputs, heads))
            both_s = bench.seconds(lambda run=run: torch.autograd.grad(run(*inputs, heads), inputs, gradient))
        except RuntimeError as error:  # a backend that does not take this shape
            found[name] = {"refused": str(error).splitlines()[0]}
            continue
        found[name] = {
            "forward_tflops": round(2 * product_flops / forward_s / 1e12, 2),
            "both_tflops": round(7 * product_flops / both_s / 1e12, 2),
        }
    return found


def bars(results: dict[str, dict]) -> dict[str, bool]:
    """Whether each aim is reached; of the sizes that they are for."""
    return {
        name: results[name]["ours"]["seconds"] <= aim["seconds"]
        and results[name]["ours"]["tflops"] >= aim.get("tflops", 0.0)
        and results[name]["within_bar"]
        for name, aim in BARS.items()
        if name in results
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=3, help="counted, of each side")
    parser.add_argument("--attention", choices=KERNELS, help="ours with this kernel; else the one that runs take")
    parser.add_argument("--compile", action="store_true", help="our blocks compiled")
    parser.add_argument("--skip-stock", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes; no figure of it means anything")
    parser.add_argument("--json", action="store_true", help="nothing but the result")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; see --tiny --device cpu")
    bench = Bench(device=torch.device(args.device), repeats=3)
    options = Options(
        size=(32, 32, 5) if args.tiny else (832, 480, args.frames),
        num_steps=args.steps,
        rank=4 if args.tiny else RANK,
        attention=args.attention,
        compiled=args.compile,
        stock=not args.skip_stock,
    )
    result: dict[str, object] = {"benchmark": "gpu_train", "tiny": args.tiny} | machine_facts()
    result["size"] = "x".join(map(str, options.size))
    results: dict[str, dict] = {}
    kernels: dict[str, dict] = {}
    for name in args.models:
        model = toy(MODELS[name]) if args.tiny else MODELS[name]
        with freed(bench.device):
            kernels[name] = attention_part(model, options, bench)
        with freed(bench.device), tempfile.TemporaryDirectory() as folder:
            results[name] = model_part(name, model, options, bench, Path(folder))
    result |= {"attention": kernels, "models": results}
    if bench.device.type == "cuda" and not args.tiny and args.frames == 81:
        result["bars"] = bars(results)
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
