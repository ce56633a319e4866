"""Wan2.1-I2V-14B with random weights and inputs in its real shapes, as DiffSynth and as the engine step through it.

Random weights say how long a step takes and how near the arithmetic of two ways is, not how good a picture.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sakuga.cost.work import evaluation_work
from sakuga.wan.attention import attention, kernel
from sakuga.wan.cards import ModelCard
from sakuga.wan.catalogue import card
from sakuga.wan.forward import DitForward
from sakuga.wan.shapes import CLIP_DIM, CLIP_TOKENS, DitShape

if TYPE_CHECKING:
    from diffsynth.models.wan_video_dit import WanModel

PROMPT_TOKENS = 512
WIDTHS = ("dim", "ffn_dim", "out_dim", "text_dim", "freq_dim", "num_heads", "num_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A DiT and the latents that it is given."""

    card: ModelCard
    latents: tuple[int, int, int]
    """Frames, rows, columns."""

    @property
    def dit(self) -> DitShape:
        return self.card.dit

    @property
    def num_tokens(self) -> int:
        frames, height, width = self.latents
        return frames * height * width // 4

    @property
    def step_flops(self) -> float:
        """Of two evaluations, a product of n x k by k x m counted as 2nkm."""
        work = evaluation_work(self.card, tokens=self.num_tokens, text_tokens=PROMPT_TOKENS)
        return 2 * sum(part.flops for part in work)


I2V = card("wan2.1-i2v-14b-480p")
SIZES = {"480p": Shape(card=I2V, latents=(21, 60, 104)), "720p": Shape(card=I2V, latents=(21, 90, 160))}
"""81 frames of 832x480 and 1280x720."""
_TOY = replace(I2V.dit, dim=96, ffn_dim=96, num_heads=2, num_layers=2, text_dim=16)
TINY = {"480p": Shape(card=replace(I2V, dit=_TOY), latents=(2, 4, 6))}


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


def make_dit(shape: Shape, bench: Bench) -> WanModel:
    """Wan2.1-I2V-14B's DiT with the same random weights each time."""
    from diffsynth.models.wan_video_dit import WanModel, precompute_freqs_cis_3d

    widths = {name: getattr(shape.dit, name) for name in WIDTHS}
    with torch.device("meta"):
        dit = WanModel(
            in_dim=shape.card.in_dim,
            eps=1e-6,
            patch_size=(1, 2, 2),
            has_image_input=shape.dit.num_image_tokens > 0,
            **widths,
        )
    dit = dit.to(bench.dtype).to_empty(device=bench.device).eval().requires_grad_(False)
    generator = torch.Generator(bench.device).manual_seed(0)
    for name, parameter in dit.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0, 0.02, generator=generator)
    dit.freqs = precompute_freqs_cis_3d(shape.dit.head_dim)  # made on the meta device with the rest
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
            prompts=(
                bench.randn(1, PROMPT_TOKENS, shape.dit.text_dim, seed=3),
                bench.randn(1, PROMPT_TOKENS, shape.dit.text_dim, seed=4),
            ),
            clip=bench.randn(1, CLIP_TOKENS, CLIP_DIM, seed=5),
            timestep=torch.tensor([600.0], device=bench.device, dtype=bench.dtype),
        )


def our_step(dit: WanModel, inputs: Inputs, name: str, *, compiled: bool = False) -> Callable[[], torch.Tensor]:
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


def stock_step(dit: WanModel, inputs: Inputs, name: str | None) -> Callable[[], torch.Tensor]:
    """The same step by DiffSynth's own `model_fn_wan_video`; None leaves the kernel to it.

    It takes what happens to be installed: FlashAttention 3, 2, sage or PyTorch's, in this order.
    """
    from diffsynth.pipelines.wan_video import model_fn_wan_video

    def run() -> torch.Tensor:
        with nullcontext() if name is None else attention(name):
            parts = [
                model_fn_wan_video(
                    dit, latents=inputs.latents, timestep=inputs.timestep, context=prompt, clip_feature=inputs.clip,
                    y=inputs.y,
                ).float()
                for prompt in inputs.prompts
            ]  # fmt: skip
        return parts[1] + 5.0 * (parts[0] - parts[1])

    return run
