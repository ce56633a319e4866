"""Renders of test samples with what a run has learnt so far, scored against their targets.

It runs in a task of its own, not beside the optimizer: a second pipeline in a training worker is what makes other
trainers run out of memory. Conditioning comes from the cache, the noise from fixed seeds, and the target is what the
VAE makes of the sample's latents, so that a render is judged and not the VAE.

Run: pytest tests/unit/test_training_validation.py
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from sakuga.engine import LocalEngine
from sakuga.engine.schedule import noise_levels
from sakuga.engine.state import Conditioning, RenderState
from sakuga.media import contact_sheet, save_image
from sakuga.quality import flicker, motion, psnr, ssim
from sakuga.recipe import EXPERTS, LoraRef, RenderRecipe
from sakuga.training.prepared import GIVEN, LatentCache, PreparedSample, PreparedSet
from sakuga.wan.passport import read_passport
from sakuga.wan.weights import file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOptions:
    """What is rendered."""

    num_samples: int = 2
    num_steps: int | None = None
    """None: the LoRA's own, or the card's."""
    guidance_scale: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Scores, and the frames for whoever wants to look."""

    metrics: Mapping[str, float]
    rows: Sequence[tuple[str, np.ndarray]]

    def save_sheet(self, path: Path) -> None:
        save_image(path, contact_sheet(list(self.rows)))


def validate(
    engine: LocalEngine, prepared: PreparedSet, cache: LatentCache, loras: Sequence[Path], options: ValidationOptions
) -> Validation:
    """Render the first test samples with these LoRA files. Raises LoraError or DataError."""
    engine.add_loras(loras)
    refs = tuple(LoraRef(sha256=file_sha256(path), weight=1.0, expert=read_passport(path).expert) for path in loras)
    rows: list[tuple[str, np.ndarray]] = []
    scores: list[dict[str, float]] = []
    began = time.monotonic()
    for sample in prepared.of("test")[: options.num_samples]:
        frames = render_prepared(engine, prepared, cache, sample, refs, options, accelerated=_passport(loras))
        target = _decoded(engine, cache.get("videos", sample.video_key)["latents_CThw"])
        scores.append(
            {
                "psnr_db": psnr(target, frames).mean_db,
                "ssim": ssim(target, frames).mean,
                "flicker": flicker(frames),
                "motion": motion(frames),
            }
        )
        rows += [(f"{sample.name} target", target), ("render", frames)]
    names = scores[0] if scores else {}
    metrics = {f"validation/{name}": float(np.mean([score[name] for score in scores])) for name in names}
    return Validation(metrics={**metrics, "validation/seconds": time.monotonic() - began}, rows=rows)


def render_prepared(
    engine: LocalEngine,
    prepared: PreparedSet,
    cache: LatentCache,
    sample: PreparedSample,
    refs: tuple[LoraRef, ...],
    options: ValidationOptions,
    *,
    accelerated: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Frames of a sample's prompt and pictures, from noise; `accelerated` are a distilled LoRA's steps and guidance."""
    card, own = engine.card, accelerated or {}
    steps = options.num_steps or own.get("num_inference_steps", card.num_inference_steps)
    guidance = options.guidance_scale or own.get("guidance_scale", card.guidance_scale)
    recipe = RenderRecipe(
        model=card.name,
        weights_sha256=engine.model.weights_sha256,
        prompt=sample.prompt,
        width=sample.width,
        height=sample.height,
        num_frames=sample.num_frames,
        fps=max(1, round(sample.fps)),
        num_inference_steps=int(steps),
        guidance_scale=guidance,
        flow_shift=own.get("flow_shift", card.flow_shift),
        seed=options.seed,
        precision=engine.model.precision,
        loras=refs,
    )
    latents = torch.randn(
        card.latent_shape(sample.width, sample.height, sample.num_frames),
        generator=torch.Generator().manual_seed(options.seed),
    )
    state = RenderState(
        recipe=recipe,
        conditioning=_conditioning(engine, prepared, cache, sample, guided=guidance != 1),
        latents_BCTHW=latents.to(engine.device),
        sigmas=noise_levels(int(steps), shift=recipe.flow_shift),
        plan=str(engine.execution),
    )
    while not state.is_done:
        state = engine.step(state)
    return engine.finish(state).frames_THWC


def _conditioning(
    engine: LocalEngine, prepared: PreparedSet, cache: LatentCache, sample: PreparedSample, *, guided: bool
) -> Conditioning:
    dtype, device = engine.model.pipe.torch_dtype, engine.device

    def text(key: str) -> torch.Tensor:
        context_LD = cache.get("texts", key)["context_LD"].to(device, dtype)
        return functional.pad(context_LD, (0, 0, 0, engine.card.tokenizer_max_tokens - len(context_LD)))[None]

    video = cache.get("videos", sample.video_key)
    given = {ours: video[name][None].to(device, dtype) for name, ours in GIVEN.items() if name in video}
    first = video.get("first_frame_latents_CThw")
    known = {field.name for field in dataclasses.fields(Conditioning)}
    assert set(given) <= known, given.keys()
    return Conditioning(
        context_positive_BLD=text(sample.text_key),
        context_negative_BLD=text(prepared.empty_text_key) if guided else None,
        first_frame_latents_BCTHW=None if first is None else first[None].to(device, dtype),
        **given,
    )


def _decoded(engine: LocalEngine, latents_CThw: torch.Tensor) -> np.ndarray:
    """What the VAE shows of a target."""
    from sakuga.engine.local import to_frames

    pipe = engine.model.pipe
    with torch.no_grad():
        latents = latents_CThw[None].to(engine.device, pipe.torch_dtype)
        return to_frames(pipe.vae.decode(latents, device=engine.device)[0])


def _passport(loras: Sequence[Path]) -> dict[str, float]:
    """Steps, guidance and shift of the first distilled LoRA among them."""
    for path in loras:
        passport = read_passport(path)
        if passport.is_acceleration:
            found = {
                "num_inference_steps": passport.num_inference_steps,
                "guidance_scale": passport.guidance_scale or 1.0,
                "flow_shift": passport.flow_shift,
            }
            return {name: value for name, value in found.items() if value is not None}
    return {}


def result_files(checkpoint: Path) -> list[Path]:
    """The LoRAs of a checkpoint's folder."""
    names = ("lora.safetensors", *(f"lora_{expert}.safetensors" for expert in EXPERTS))
    return [checkpoint / name for name in names if (checkpoint / name).is_file()]
