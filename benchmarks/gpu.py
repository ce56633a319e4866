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
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import machine_facts, print_result  # benchmarks/common.py
from safetensors.torch import save_file

from sakuga.errors import SakugaError
from sakuga.recipe import LoraRef
from sakuga.wan.attention import attention, check_attention, kernel, usable_kernels
from sakuga.wan.attention_choice import choose_attention
from sakuga.wan.cards import KEPT_LAYERS
from sakuga.wan.forward import DitForward
from sakuga.wan.lora import LoraSwitch
from sakuga.wan.precision import check_precision, quantization
from sakuga.wan.weights import file_sha256

PARTS = ("matmul", "attention", "steps", "memory", "vae", "lora")
PUBLISHED_S = {"480p": {"bf16": 5.40, "fp8": 4.78}, "720p": {"bf16": 18.8, "fp8": 16.8}}
"""LightX2V's benchmark page on an H200, Wan2.1-I2V-14B, 81 frames, with guidance."""
PROMPT_TOKENS, CLIP_TOKENS = 512, 257


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Widths of a DiT and the latents it is given."""

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    text_dim: int = 4096
    latents: tuple[int, int, int] = (21, 60, 104)
    """Frames, rows, columns: 81 frames of 832x480."""

    @property
    def num_tokens(self) -> int:
        frames, height, width = self.latents
        return frames * height * width // 4


SIZES = {"480p": Shape(), "720p": Shape(latents=(21, 90, 160))}
TINY = {"480p": Shape(dim=96, ffn_dim=96, num_heads=2, num_layers=2, text_dim=16, latents=(2, 4, 6))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and how everything here is measured."""

    device: torch.device
    repeats: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def seconds(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Median, after one run that is not counted."""
        found = []
        for _ in range((repeats or self.repeats) + 1):
            self.wait()
            began = time.monotonic()
            work()
            self.wait()
            found.append(time.monotonic() - began)
        return statistics.median(found[1:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_bytes(self, work: Callable[[], object]) -> int | None:
        """Of the device's memory while `work` runs, what was there before included; None on a CPU."""
        if self.device.type != "cuda":
            work()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def randn(self, *shape: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device, dtype=self.dtype)


@contextmanager
def freed(device: torch.device) -> Iterator[None]:
    """What is made inside is gone afterwards, also when it did not fit."""
    try:
        yield
    finally:
        gc.collect()
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def make_dit(shape: Shape, bench: Bench) -> torch.nn.Module:
    """Wan2.1-I2V-14B's DiT with the same random weights each time."""
    from diffsynth.models.wan_video_dit import WanModel

    with torch.device("meta"):
        dit = WanModel(
            dim=shape.dim, in_dim=36, ffn_dim=shape.ffn_dim, out_dim=16, text_dim=shape.text_dim, freq_dim=256,
            eps=1e-6, patch_size=(1, 2, 2), num_heads=shape.num_heads, num_layers=shape.num_layers,
            has_image_input=True,
        )  # fmt: skip
    dit = dit.to(bench.dtype).to_empty(device=bench.device).eval().requires_grad_(False)
    generator = torch.Generator(bench.device).manual_seed(0)
    for name, parameter in dit.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0, 0.02, generator=generator)
    from diffsynth.models.wan_video_dit import precompute_freqs_cis_3d

    dit.freqs = precompute_freqs_cis_3d(shape.dim // shape.num_heads)  # made on the meta device with the rest
    return dit


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Of one step: latents, image channels, both prompts and the picture in CLIP's eyes."""

    latents: torch.Tensor
    y: torch.Tensor
    prompts: tuple[torch.Tensor, torch.Tensor]
    clip: torch.Tensor
    timestep: torch.Tensor

    @classmethod
    def random(cls, shape: Shape, bench: Bench) -> Inputs:
        return cls(
            latents=bench.randn(1, 16, *shape.latents, seed=1),
            y=bench.randn(1, 20, *shape.latents, seed=2),
            prompts=tuple(bench.randn(1, PROMPT_TOKENS, shape.text_dim, seed=seed) for seed in (3, 4)),
            clip=bench.randn(1, CLIP_TOKENS, 1280, seed=5),
            timestep=torch.tensor([600.0], device=bench.device, dtype=bench.dtype),
        )


def our_step(dit: torch.nn.Module, inputs: Inputs, name: str, *, compiled: bool = False) -> Callable[[], torch.Tensor]:
    """A guided step as the engine does it: prompts embedded once for the render."""
    forward, attend = DitForward(dit, compiled=compiled), kernel(name)
    contexts = [forward.context(prompt, inputs.clip) for prompt in inputs.prompts]

    def run() -> torch.Tensor:
        parts = []
        for context in contexts:
            tokens = forward.embed(inputs.latents, inputs.timestep, y_BCTHW=inputs.y)
            parts.append(forward.head(tokens, forward.blocks(tokens, context, attend)).float())
        return parts[1] + 5.0 * (parts[0] - parts[1])

    return run


def stock_step(dit: torch.nn.Module, inputs: Inputs) -> Callable[[], torch.Tensor]:
    """The same step by DiffSynth's own `model_fn_wan_video`, with PyTorch's attention."""
    from diffsynth.pipelines.wan_video import model_fn_wan_video

    def run() -> torch.Tensor:
        with attention("sdpa"):
            parts = [
                model_fn_wan_video(
                    dit, latents=inputs.latents, timestep=inputs.timestep, context=prompt, clip_feature=inputs.clip,
                    y=inputs.y,
                ).float()
                for prompt in inputs.prompts
            ]  # fmt: skip
        return parts[1] + 5.0 * (parts[0] - parts[1])

    return run


def matmul_part(bench: Bench, shapes: dict[str, Shape]) -> dict[str, object]:
    """The ceiling: the DiT's largest product alone."""
    found = {}
    for size, shape in shapes.items():
        x, w = bench.randn(shape.num_tokens, shape.dim), bench.randn(shape.dim, shape.ffn_dim)
        flops = 2 * shape.num_tokens * shape.dim * shape.ffn_dim
        found[size] = round(flops / bench.seconds(lambda x=x, w=w: x @ w, 10) / 1e12, 1)
    return {"bf16_tflops": found}


def attention_part(bench: Bench, shapes: dict[str, Shape]) -> dict[str, object]:
    """Every exact kernel that is here, tried as "auto" tries it, and sage."""
    found = {}
    for size, shape in shapes.items():
        given = {"num_heads": shape.num_heads, "head_dim": shape.dim // shape.num_heads}
        here = {"device": bench.device, "dtype": bench.dtype}
        names = usable_kernels(head_dim=given["head_dim"], **here)
        try:
            check_attention("sage", head_dim=given["head_dim"], **here)
            names = (*names, "sage")
        except SakugaError as error:
            print(f"sage: {error}", file=sys.stderr)
        names = names if len(names) > 1 else (names[0], names[0])
        choice = choose_attention(num_tokens=shape.num_tokens, names=names, **given, **here)
        flops = 4 * shape.num_tokens**2 * shape.dim
        rows = [row | _tflops(flops, row.get("seconds")) for row in choice.report()]
        found[size] = {"chosen": choice.name, "kernels": rows}
    return found


def _tflops(flops: float, seconds: object) -> dict[str, float]:
    return {"tflops": round(flops / seconds / 1e12, 1)} if isinstance(seconds, float) and seconds > 0 else {}


def evaluation_flops(shape: Shape) -> float:
    """Of one evaluation, a product of n x k by k x m counted as 2nkm: linear layers and attention of the blocks.

    Embeddings and head, under 1 % of a 14B model, are left out.
    """
    s, d = shape.num_tokens, shape.dim
    context = PROMPT_TOKENS + CLIP_TOKENS
    linear = 2 * s * d * (4 * d + 2 * d + 2 * shape.ffn_dim) + 2 * context * d * 2 * d
    return shape.num_layers * (linear + 4 * s * s * d + 4 * s * context * d)


VARIANTS: dict[str, dict[str, object]] = {
    "stock": {},
    "bf16": {"attention": "sdpa"},
    "bf16_best": {"attention": "best"},
    "bf16_best_compiled": {"attention": "best", "compiled": True},
    "sage": {"attention": "sage"},
    "fp8": {"attention": "best", "precision": "fp8-dynamic"},
    "fp8_compiled": {"attention": "best", "precision": "fp8-dynamic", "compiled": True},
    "fp8_sage_compiled": {"attention": "sage", "precision": "fp8-dynamic", "compiled": True},
    "int8_compiled": {"attention": "best", "precision": "int8-dynamic", "compiled": True},
}


def steps_part(bench: Bench, shapes: dict[str, Shape], best: dict[str, str], ceiling: dict) -> dict[str, object]:
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
                        dit, precision = make_dit(shape, bench), wanted
                        config = quantization(numbers, KEPT_LAYERS)
                        assert config is not None, "only quantized precisions differ here"
                        config.quantize_model(dit)
                    rows[name] = _step_row(bench, dit, inputs, variant, best[size], reference, name == "stock")
                except (SakugaError, RuntimeError, ImportError, AssertionError) as error:
                    rows[name] = {"refused": str(error).strip().split("\n", 1)[0][:200]}
                    precision = precision if dit is not None else "none"
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
        run = stock_step(dit, inputs)
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
    tflops = 2 * evaluation_flops(shape) / max(row["seconds"], 1e-9) / 1e12
    row["tflops"] = round(tflops, 1)
    if ceiling_tflops:
        row["share_of_ceiling"] = round(tflops / ceiling_tflops, 3)
    if "seconds" in rows["stock"]:
        row["speedup_over_stock"] = round(rows["stock"]["seconds"] / max(row["seconds"], 1e-9), 3)


def memory_part(bench: Bench, shapes: dict[str, Shape]) -> dict[str, object]:
    """Peak bytes and seconds of a step under each memory plan, the DiT alone."""
    from sakuga.wan.memory import MemoryPlan
    from sakuga.wan.offload import Offloader

    found: dict[str, object] = {}
    size, shape = next(iter(shapes.items()))
    on_host = replace(bench, device=torch.device("cpu"))
    for text in ("resident", "layers:8GB", "disk"):
        with freed(bench.device):
            inputs, plan = Inputs.random(shape, bench), MemoryPlan.parse(text)
            dit = make_dit(shape, bench if text == "resident" else on_host)

            class Pipe:
                pass

            pipe = Pipe()
            pipe.dit = dit
            offloader = Offloader(pipe, plan, bench.device, bench.dtype)
            offloader.use("dit")
            forward = DitForward(dit, place=offloader.block)
            contexts = [forward.context(prompt, inputs.clip) for prompt in inputs.prompts]

            def run(forward=forward, inputs=inputs, contexts=contexts) -> None:
                for context in contexts:
                    tokens = forward.embed(inputs.latents, inputs.timestep, y_BCTHW=inputs.y)
                    forward.head(tokens, forward.blocks(tokens, context, kernel("sdpa")))

            peak = bench.peak_bytes(run)
            found[text] = {"peak_bytes": peak, "seconds": round(bench.seconds(run, 1), 4)}
            print(f"{size} {text}: {found[text]}", file=sys.stderr, flush=True)
            offloader.give_back()
            del dit, pipe, offloader, forward, contexts, run
    return {size: found}


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
    dit, rank, found = make_dit(shape, bench), min(32, shape.dim // 4), {}
    names = [name for name, module in dit.blocks.named_modules() if isinstance(module, torch.nn.Linear)]
    with tempfile.TemporaryDirectory() as folder:
        path, tensors = Path(folder) / "lora.safetensors", {}
        for name in names:
            out, inner = dit.blocks.get_parameter(f"{name}.weight").shape
            tensors[f"blocks.{name}.lora_A.weight"] = torch.randn(rank, inner, dtype=bench.dtype)
            tensors[f"blocks.{name}.lora_B.weight"] = torch.randn(out, rank, dtype=bench.dtype)
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
        ceiling = matmul_part(bench, shapes) if {"matmul", "steps"} & {*parts} else {"bf16_tflops": {}}
        kernels = attention_part(bench, shapes) if {"attention", "steps"} & {*parts} else {}
        result |= {"matmul": ceiling, "attention": kernels}
        if "steps" in parts:
            best = {size: found["chosen"] for size, found in kernels.items()}
            best = {size: "sdpa" if name == "sage" else name for size, name in best.items()}
            result["steps"] = steps_part(bench, shapes, best, ceiling["bf16_tflops"])
        if "memory" in parts:
            result["memory"] = memory_part(bench, shapes)
        if "vae" in parts:
            result["vae"] = vae_part(bench, shapes, tiny=args.tiny)
        if "lora" in parts:
            result["lora"] = lora_part(bench, shapes)
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
