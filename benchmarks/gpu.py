"""One CUDA GPU: seconds a step of Wan2.1-I2V-14B for stock DiffSynth and for ours, kernels, memory, VAE, LoRA swaps.

    python benchmarks/gpu.py --json                      # everything, under 20 minutes on an H200
    python benchmarks/gpu.py --only steps --size 480p    # one part, one size
    python benchmarks/gpu.py --tiny --device cpu         # the same code at toy shapes, to see that it runs

Needs no network, no weights and no Ray: random weights in the real shapes, one step with guidance (two evaluations of
the DiT), no step cache, no offload. `cosine` is that of the velocity to bf16 with PyTorch's attention. On random
weights it says how near the arithmetic is, not how good a picture.
Parts: matmul, attention, steps, memory, vae, lora.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from common import machine_facts, print_result  # benchmarks/common.py
from gpu_model import SIZES, TINY, Bench, Inputs, Shape, freed, make_dit, our_step, stock_step
from safetensors.torch import save_file

from sakuga.cost.footprint import Planned, denoise_bytes, model_parts, part_on_device
from sakuga.errors import SakugaError
from sakuga.recipe import LoraRef, RenderRecipe
from sakuga.wan.attention import check_attention, kernel, usable_kernels
from sakuga.wan.attention_choice import Choice, choose_attention
from sakuga.wan.cards import KEPT_LAYERS
from sakuga.wan.forward import DitForward
from sakuga.wan.lora import LoraSwitch
from sakuga.wan.memory import MemoryPlan
from sakuga.wan.offload import Offloader
from sakuga.wan.precision import check_precision, quantization
from sakuga.wan.weights import file_sha256

if TYPE_CHECKING:
    from diffsynth.pipelines.wan_video import WanVideoPipeline

PARTS = ("matmul", "attention", "steps", "memory", "vae", "lora")
PUBLISHED_S = {"480p": {"bf16": 5.40, "fp8": 4.78}, "720p": {"bf16": 18.8, "fp8": 16.8}}
"""LightX2V's benchmark page on an H200, Wan2.1-I2V-14B, 81 frames, with guidance."""


def matmul_part(bench: Bench, shapes: dict[str, Shape]) -> dict[str, float]:
    """The ceiling: the DiT's largest product alone."""
    found = {}
    for size, shape in shapes.items():
        x, w = bench.randn(shape.num_tokens, shape.dit.dim), bench.randn(shape.dit.dim, shape.dit.ffn_dim)
        flops = 2 * shape.num_tokens * shape.dit.dim * shape.dit.ffn_dim
        found[size] = round(flops / bench.seconds(lambda x=x, w=w: x @ w, 10) / 1e12, 1)
    return found


def attention_part(bench: Bench, shapes: dict[str, Shape]) -> dict[str, dict]:
    """Every exact kernel that is here, tried as "auto" tries it, and sage, which is never chosen."""
    found = {}
    for size, shape in shapes.items():
        head_dim = shape.dit.head_dim
        exact = usable_kernels(device=bench.device, head_dim=head_dim, dtype=bench.dtype)
        choice = _chosen(bench, shape, exact)
        try:
            check_attention("sage", device=bench.device, head_dim=head_dim, dtype=bench.dtype)
            lossy = _chosen(bench, shape, ("sdpa", "sage")).report()[1:]
        except SakugaError as error:
            lossy = [{"name": "sage", "refused": str(error)}]
        flops = 4 * shape.num_tokens**2 * shape.dit.dim
        rows = [row | _tflops(flops, row.get("seconds")) for row in (*choice.report(), *lossy)]
        found[size] = {"chosen": choice.name, "kernels": rows}
    return found


def _chosen(bench: Bench, shape: Shape, names: tuple[str, ...]) -> Choice:
    return choose_attention(
        num_tokens=shape.num_tokens,
        num_heads=shape.dit.num_heads,
        head_dim=shape.dit.head_dim,
        device=bench.device,
        dtype=bench.dtype,
        names=names if len(names) > 1 else names * 2,  # one alone would not be timed
    )


def _tflops(flops: float, seconds: object) -> dict[str, float]:
    return {"tflops": round(flops / seconds / 1e12, 1)} if isinstance(seconds, float) and seconds > 0 else {}


VARIANTS: dict[str, dict[str, object]] = {
    "stock": {"attention": None},
    "stock_sdpa": {"attention": "sdpa"},
    "bf16": {"attention": "sdpa"},
    "bf16_best": {"attention": "best"},
    "bf16_best_compiled": {"attention": "best", "compiled": True},
    "sage": {"attention": "sage"},
    "fp8": {"attention": "best", "precision": "fp8-dynamic"},
    "fp8_compiled": {"attention": "best", "precision": "fp8-dynamic", "compiled": True},
    "fp8_sage_compiled": {"attention": "sage", "precision": "fp8-dynamic", "compiled": True},
    "int8_compiled": {"attention": "best", "precision": "int8-dynamic", "compiled": True},
}


def steps_part(
    bench: Bench, shapes: dict[str, Shape], best: dict[str, str], ceiling: dict[str, float]
) -> dict[str, object]:
    """Seconds of a guided step for each variant, and how near its velocity is to bf16's."""
    found: dict[str, object] = {}
    for size, shape in shapes.items():
        with freed(bench.device):
            inputs, rows = Inputs.random(shape, bench), {}
            dit = make_dit(shape, bench)
            reference = our_step(dit, inputs, "sdpa")().cpu()
            precision = "bf16"
            for name, variant in VARIANTS.items():
                wanted = str(variant.get("precision", "bf16"))
                try:
                    if wanted != precision:
                        dit = None  # two do not fit beside each other
                        with freed(bench.device):
                            pass
                        numbers = check_precision(wanted, bench.device)
                        dit, precision = make_dit(shape, bench), "half made"
                        config = quantization(numbers, KEPT_LAYERS)
                        assert config is not None, "only quantized precisions differ here"
                        config.quantize_model(dit)
                        precision = wanted
                    rows[name] = _step_row(bench, dit, inputs, variant, best[size], reference, name.startswith("stock"))
                except (SakugaError, RuntimeError, ImportError, AssertionError) as error:
                    rows[name] = {"refused": str(error).strip().split("\n", 1)[0][:200]}
                    precision = precision if dit is not None else "none"  # the next one is made anew
                _compare(rows[name], rows, shape, ceiling.get(size))
                print(f"{size} {name}: {rows[name]}", file=sys.stderr, flush=True)
                torch._dynamo.reset()
            del dit
        found[size] = {"num_tokens": shape.num_tokens, "published_s": PUBLISHED_S.get(size), "variants": rows}
    return found


def _step_row(
    bench: Bench, dit, inputs: Inputs, variant: dict, best: str, reference: torch.Tensor, is_stock: bool
) -> dict[str, object]:
    if is_stock:
        run = stock_step(dit, inputs, variant["attention"])
    else:
        name = best if variant["attention"] == "best" else str(variant["attention"])
        head_dim = dit.blocks[0].self_attn.head_dim
        check_attention(name, device=bench.device, head_dim=head_dim, dtype=bench.dtype)
        run = our_step(dit, inputs, name, compiled=bool(variant.get("compiled")))
    velocity = run().cpu()
    if not torch.isfinite(velocity).all():
        return {"refused": "NaN or infinite velocity"}
    cosine = torch.nn.functional.cosine_similarity(velocity.flatten(), reference.flatten(), dim=0)
    return {"seconds": round(bench.seconds(run), 4), "cosine": round(float(cosine), 6)}


def _compare(row: dict, rows: dict, shape: Shape, ceiling_tflops: float | None) -> None:
    if "seconds" not in row:
        return
    tflops = shape.step_flops / max(row["seconds"], 1e-9) / 1e12
    row["tflops"] = round(tflops, 1)
    if ceiling_tflops:
        row["share_of_ceiling"] = round(tflops / ceiling_tflops, 3)
    stock = [rows[name]["seconds"] for name in ("stock", "stock_sdpa") if "seconds" in rows.get(name, {})]
    if stock:  # the faster of DiffSynth's own choice of kernel and PyTorch's attention
        row["speedup_over_stock"] = round(min(stock) / max(row["seconds"], 1e-9), 3)


def memory_part(bench: Bench, shapes: dict[str, Shape]) -> dict[str, object]:
    """Peak bytes and seconds of a step under each memory plan, the DiT alone; `layers:1` keeps no block."""
    found: dict[str, object] = {}
    size, shape = next(iter(shapes.items()))
    for text in ("resident", "layers:8GB", "layers:1"):
        with freed(bench.device):
            inputs, plan = Inputs.random(shape, bench), MemoryPlan.parse(text)
            dit = make_dit(shape, bench)
            if text != "resident":
                dit = dit.to("cpu")  # made on the device: 16 billion random numbers take minutes on a CPU

            pipe = cast("WanVideoPipeline", SimpleNamespace(dit=dit))  # all that an offloader looks at
            offloader = Offloader(pipe, plan, bench.device, bench.dtype)
            offloader.use("dit")
            forward = DitForward(dit, place=offloader.block)
            contexts = [forward.context(prompt, inputs.clip) for prompt in inputs.prompts]

            def run(forward=forward, inputs=inputs, contexts=contexts) -> None:
                for context in contexts:
                    tokens = forward.embed(inputs.latents, inputs.timestep, y_BCTHW=inputs.y)
                    forward.head(tokens, forward.blocks(tokens, context, kernel("sdpa")))

            peak = bench.peak_bytes(run)
            predicted = _predicted_bytes(shape, plan)
            seconds = round(bench.seconds(run, 1), 4)
            found[text] = {"peak_bytes": peak, "predicted_bytes": predicted, "seconds": seconds}
            print(f"{size} {text}: {found[text]}", file=sys.stderr, flush=True)
            offloader.give_back()
            del dit, pipe, offloader, forward, contexts, run
    return {size: found}


def _predicted_bytes(shape: Shape, plan: MemoryPlan) -> int:
    """By the cost model, for what is measured: the DiT and its activations, no other network."""
    frames, height, width = shape.latents
    recipe = RenderRecipe(
        model=shape.card.name,
        weights_sha256="0" * 64,
        prompt="x",
        seed=1,
        precision="bf16",
        width=width * 8,
        height=height * 8,
        num_frames=(frames - 1) * 4 + 1,
    )
    dit = next(part for part in model_parts(shape.card, "bf16") if part.name == "dit")
    return part_on_device(dit, plan) + denoise_bytes(recipe, shape.card, Planned(memory=plan), "bf16")


def vae_part(bench: Bench, shapes: dict[str, Shape], *, tiny: bool) -> dict[str, object]:
    """Decode of all frames, whole and in tiles."""
    from diffsynth.models.wan_video_vae import VideoVAE_, WanVideoVAE

    vae = WanVideoVAE(z_dim=16)
    if tiny:
        vae.model = VideoVAE_(dim=8, z_dim=16, num_res_blocks=1).eval()
    vae = vae.to(bench.device, bench.dtype).eval().requires_grad_(False)
    found: dict[str, object] = {}
    for size, shape in shapes.items():
        latents = bench.randn(1, 16, *shape.latents)
        for name, tiling in (("whole", {"tiled": False}), ("tiled", {"tiled": True})):
            with freed(bench.device):
                try:

                    def run(latents=latents, tiling=tiling) -> None:
                        vae.decode(latents, device=bench.device, **tiling)

                    peak = bench.peak_bytes(run)
                    found[f"{size} {name}"] = {"seconds": round(bench.seconds(run, 1), 3), "peak_bytes": peak}
                except torch.OutOfMemoryError:
                    found[f"{size} {name}"] = {"refused": "out of memory"}
    return found


def lora_part(bench: Bench, shapes: dict[str, Shape]) -> dict[str, object]:
    """A LoRA of rank 32 on every linear layer of the blocks: in, and out again, fused and beside the weights."""
    shape = next(iter(shapes.values()))
    dit, rank, found = make_dit(shape, bench), min(32, shape.dit.dim // 4), {}
    names = [name for name, module in dit.named_modules() if name.startswith("blocks.") and is_linear(module)]
    with tempfile.TemporaryDirectory() as folder:
        path, tensors = Path(folder) / "lora.safetensors", {}
        for name in names:
            out, inner = dit.get_parameter(f"{name}.weight").shape
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inner, dtype=bench.dtype)
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, dtype=bench.dtype)
        save_file(tensors, path)
        wanted = [LoraRef(sha256=file_sha256(path), weight=0.5)]
        for mode in ("fused", "hot"):
            switch = LoraSwitch([dit], hot=mode == "hot", device=bench.device, dtype=bench.dtype)
            switch.register(path)
            bench.wait()
            began = time.monotonic()
            switch.apply(wanted)
            bench.wait()
            middle = time.monotonic()
            switch.apply([])
            bench.wait()
            found[mode] = {"in_s": round(middle - began, 3), "out_s": round(time.monotonic() - middle, 3)}
    return found | {"rank": rank, "layers": len(names)}


def is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    parser.add_argument("--size", choices=SIZES, action="append", help="this size; may be repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes; no figure of it means anything")
    parser.add_argument("--json", action="store_true", help="nothing but the result")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; see --tiny --device cpu")
    bench, parts = Bench(device=torch.device(args.device), repeats=args.repeats), args.only or PARTS
    shapes = TINY if args.tiny else {size: SIZES[size] for size in args.size or SIZES}
    result: dict[str, object] = {"benchmark": "gpu", "tiny": args.tiny} | machine_facts()
    with torch.no_grad():
        ceiling = matmul_part(bench, shapes) if {"matmul", "steps"} & {*parts} else {}
        kernels = attention_part(bench, shapes) if {"attention", "steps"} & {*parts} else {}
        result |= {"matmul_bf16_tflops": ceiling, "attention": kernels}
        if "steps" in parts:
            best = {size: found["chosen"] for size, found in kernels.items()}
            result["steps"] = steps_part(bench, shapes, best, ceiling)
        if "memory" in parts:
            result["memory"] = memory_part(bench, shapes)
        if "vae" in parts:
            result["vae"] = vae_part(bench, shapes, tiny=args.tiny)
        if "lora" in parts:
            result["lora"] = lora_part(bench, shapes)
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
