"""The engine in one process: start, step, finish, on DiffSynth's models with a loop of our own.

It knows recipes and tensors. It knows nothing of Ray, jobs, files of results or other ranks.

Shapes as in `engine/state.py`.     Run: pytest tests/unit/test_engine_equality.py tests/unit/test_engine_local.py
"""

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sakuga.engine.encode import encode, tiling_arguments
from sakuga.engine.evaluation import LocalEvaluation
from sakuga.engine.notes import input_notes
from sakuga.engine.receipt import build_receipt
from sakuga.engine.schedule import NUM_TRAIN_TIMESTEPS, euler_step, noise_levels
from sakuga.engine.snapshot import load_state, save_state
from sakuga.engine.state import OnEvent, RenderInputs, RenderState, StepEvent, Video
from sakuga.engine.task import check_task
from sakuga.errors import ModelError, NumericsError, RecipeError, WeightsError
from sakuga.recipe import RenderRecipe
from sakuga.settings import from_environment
from sakuga.wan.attention import attention, kernel, resolve_attention
from sakuga.wan.caching import EMPTY, BranchCache, full_velocity, make_rule
from sakuga.wan.cards import ModelCard
from sakuga.wan.catalogue import card
from sakuga.wan.device import check_device, memory_of
from sakuga.wan.forward import Context, DitForward
from sakuga.wan.loading import LoadedModel, load_model, locate, stdout_to_log
from sakuga.wan.lora import LoraSwitch
from sakuga.wan.preview import LatentToRgb, fit_latent_to_rgb

if TYPE_CHECKING:
    from diffsynth.pipelines.wan_video import WanVideoPipeline

logger = logging.getLogger(__name__)

MAX_CONTEXTS = 8
"""Embedded prompts kept: two branches of four renders that take turns; one of a 14B model is 8 MB."""


class LocalEngine:
    """Renders recipes of one loaded model, one at a time.

    LoRAs belong to the recipe: the engine fuses those that the next render needs and takes out the others, after
    which the base weights are what they were, bit for bit. Two renders may take turns step by step.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.device = torch.device(model.pipe.device)
        self._loras = LoraSwitch(model.experts)
        pipe = model.pipe
        self._forwards = [
            DitForward(dit, vace) for dit, vace in ((pipe.dit, pipe.vace), (pipe.dit2, pipe.vace2)) if dit is not None
        ]
        self._contexts: dict[tuple[str, str, bool], Context] = {}
        self._latent_to_rgb: LatentToRgb | None = None

    @classmethod
    def load(
        cls,
        model: str | ModelCard,
        weights: str | Path | None = None,
        *,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> "LocalEngine":
        """Load a card: from a folder, from s3://bucket/prefix or, None, from the package.

        Raises DeviceError, ModelError, WeightsError or StorageError.
        """
        check_device(device)  # before 28 GB are downloaded for it
        settings = from_environment()
        chosen = card(model) if isinstance(model, str) else model
        found = locate(chosen, weights, cache_dir=settings.cache_dir, endpoint_url=settings.s3_endpoint_url)
        return cls(load_model(found, device=device, precision=precision))

    @property
    def card(self) -> ModelCard:
        return self.model.card

    @property
    def _pipe(self) -> "WanVideoPipeline":
        return self.model.pipe

    def start(self, recipe: RenderRecipe, inputs: RenderInputs) -> RenderState:
        """Encode: check that this engine can render the recipe, fuse its LoRAs, make latents and conditioning.

        Raises RecipeError, ModelError, GeometryError, AttentionError, LoraError, VideoError or WeightsError.
        """
        began = time.monotonic()
        check_task(recipe, self.card)
        self._check_is_for_me(recipe)
        self.add_loras(inputs.lora_paths)
        notes = (*input_notes(recipe, inputs), *self._prompt_notes(recipe))
        with self._ready(recipe), stdout_to_log():
            encoded = encode(self._pipe, recipe, inputs)
        self._synchronize()
        return RenderState(
            recipe=recipe,
            conditioning=encoded.conditioning,
            latents_BCTHW=encoded.latents_BCTHW.float(),
            sigmas=noise_levels(
                recipe.num_inference_steps,
                shift=recipe.flow_shift,
                denoising_strength=recipe.denoising_strength,
            ),
            num_reference_frames=encoded.num_reference_frames,
            encode_s=time.monotonic() - began,
            notes=notes,
        )

    def add_loras(self, paths: Sequence[Path]) -> None:
        """Read LoRAs that recipes will name, as a restored render needs them. LoraError when one does not fit."""
        for path in paths:
            self._loras.register(path)

    def step(self, state: RenderState) -> RenderState:
        """One denoise step. Raises NumericsError when latents stop being finite."""
        began = time.monotonic()
        sigma, sigma_next = state.sigmas[state.step], state.sigmas[state.step + 1]
        with self._ready(state.recipe):
            velocity, caches, num_blocks_run = self._guided_velocity(state, sigma * NUM_TRAIN_TIMESTEPS)
            latents = euler_step(state.latents_BCTHW, velocity, sigma, sigma_next)
        first_frame = state.conditioning.first_frame_latents_BCTHW
        if first_frame is not None:
            latents[:, :, 0:1] = first_frame
        if not torch.isfinite(latents).all():
            raise NumericsError(
                f"step {state.step + 1} of {state.num_steps} gave NaN or infinite values; "
                f"render in fp32, lower guidance_scale or leave out the LoRA"
            )
        return state.advanced(latents, velocity, time.monotonic() - began, caches, num_blocks_run)

    def finish(self, state: RenderState) -> Video:
        """Decode the latents of the last step. Raises NumericsError when that gives NaN or infinite values."""
        if not state.is_done:
            raise RecipeError(f"{state.num_steps - state.step} steps are still to do; call step() before finish()")
        began = time.monotonic()
        latents = state.latents_BCTHW[:, :, state.num_reference_frames :]
        with self._ready(state.recipe), stdout_to_log():
            self._pipe.load_models_to_device(["vae"])
            latents = latents.to(self._pipe.torch_dtype)
            video_BCTHW = self._pipe.vae.decode(latents, device=self._pipe.device, **tiling_arguments(state.recipe))
        if not torch.isfinite(video_BCTHW).all():  # as uint8, NaN is a plain black pixel
            raise NumericsError("decoding gave NaN or infinite values; render in fp32, fp16 overflows in some VAEs")
        frames_THWC = to_frames(video_BCTHW[0])
        decode_s = time.monotonic() - began
        seconds = {"encode": state.encode_s, "denoise": sum(state.step_s), "decode": decode_s}
        return Video(
            frames_THWC=frames_THWC,
            fps=state.recipe.fps,
            seconds=seconds | {"total": sum(seconds.values())},
            step_s=state.step_s,
            num_blocks_run=state.num_blocks_run,
            notes=state.notes,
        )

    def preview(self, state: RenderState, frame: float = 0.5) -> np.ndarray:
        """What a frame of the video will about look like, uint8 HWC; `frame` from 0 (first) to 1 (last).

        Costs a matrix product: no step, no decoder. The first call fits the map from latents to colours to the VAE.
        """
        if self._latent_to_rgb is None:
            self._latent_to_rgb = fit_latent_to_rgb(self._encode_frame, preview_pictures())
        latents = state.predicted_latents()[0, :, state.num_reference_frames :]
        index = round(frame * (latents.shape[1] - 1))
        return self._latent_to_rgb.picture(latents[:, index], state.recipe.width, state.recipe.height)

    def _encode_frame(self, video_CTHW: torch.Tensor) -> torch.Tensor:
        self._pipe.load_models_to_device(["vae"])
        video = video_CTHW.to(dtype=self._pipe.torch_dtype, device=self.device)
        with torch.no_grad():
            return self._pipe.vae.encode([video], device=self.device)[0]

    def snapshot(self, state: RenderState, path: Path) -> None:
        """Save a state; `restore` goes on from it to the same bits, in another process or on another machine."""
        save_state(state, path)

    def restore(self, path: Path, recipe: RenderRecipe | None = None) -> RenderState:
        """A saved state. Raises WeightsError when it is damaged, or of other weights than this engine holds;
        ModelError for another model; RecipeError for another format, or for another render than `recipe`'s.
        """
        state = load_state(path, self.device)
        if recipe is not None and state.recipe.render_key != recipe.render_key:
            raise RecipeError(
                f"{path} is a snapshot of render {state.recipe.render_key[:12]}, not of {recipe.render_key[:12]}; "
                "start this render from the beginning"
            )
        self._check_is_for_me(state.recipe)
        return state

    def render(
        self, recipe: RenderRecipe, inputs: RenderInputs | None = None, on_event: OnEvent | None = None
    ) -> Video:
        """Start, every step, finish. What `on_event` raises ends the render."""
        began = time.monotonic()

        def tell(stage: str, step: int, step_s: float | None = None) -> None:
            if on_event is not None:
                elapsed_s = time.monotonic() - began
                num_steps = recipe.num_inference_steps
                on_event(StepEvent(stage=stage, step=step, num_steps=num_steps, elapsed_s=elapsed_s, step_s=step_s))

        tell("encode", 0)
        state = self.start(recipe, inputs or RenderInputs())
        tell("denoise", 0)
        while not state.is_done:
            state = self.step(state)
            tell("denoise", state.step, state.step_s[-1])
        tell("decode", state.step)
        return self.finish(state)

    def receipt(self, recipe: RenderRecipe, video: Video) -> dict[str, object]:
        """What made this video: recipe, key, weights, versions, seconds, attention, LoRAs, notes."""
        return build_receipt(
            model=self.model,
            recipe=recipe,
            video=video,
            attention=self._attention(recipe),
            loras=[self._loras.report(ref) for ref in recipe.loras],
        )

    def _guided_velocity(
        self, state: RenderState, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, BranchCache], int]:
        """Velocity under guidance, what the step cache remembers now, and how many blocks were run."""
        low_noise, guidance = self._expert(state.recipe, timestep)
        positive, caches, num_blocks_run = self._branch_velocity(state, "positive", timestep, low_noise=low_noise)
        if guidance == 1:
            return positive, caches, num_blocks_run
        negative, more_caches, more_blocks = self._branch_velocity(state, "negative", timestep, low_noise=low_noise)
        return negative + guidance * (positive - negative), caches | more_caches, num_blocks_run + more_blocks

    def _branch_velocity(
        self, state: RenderState, branch: str, timestep: torch.Tensor, *, low_noise: bool
    ) -> tuple[torch.Tensor, dict[str, BranchCache], int]:
        evaluation = self._evaluation(state, branch, timestep, low_noise=low_noise)
        step_cache = state.recipe.step_cache
        if step_cache is None:
            return full_velocity(evaluation).float(), {}, evaluation.num_blocks_run
        name = f"{branch}.{int(low_noise)}"  # the other expert's memory says nothing about this one
        velocity, cache = make_rule(step_cache, self.card)(evaluation, state.caches.get(name, EMPTY))
        return velocity.float(), {name: cache}, evaluation.num_blocks_run

    def _expert(self, recipe: RenderRecipe, timestep: torch.Tensor) -> tuple[bool, float]:
        """Whether the low-noise expert's turn has come, and the guidance of this step."""
        low_noise = self._is_low_noise(recipe, timestep)
        if low_noise and recipe.guidance_scale_2 is not None:
            return low_noise, recipe.guidance_scale_2
        return low_noise, recipe.guidance_scale

    def _evaluation(
        self, state: RenderState, branch: str, timestep: torch.Tensor, *, low_noise: bool
    ) -> LocalEvaluation:
        return LocalEvaluation(
            forward=self._forwards[1 if low_noise else 0],
            context=self._context(state, branch, low_noise=low_noise),
            kernel=kernel(self._attention(state.recipe)),
            conditioning=state.conditioning,
            latents_BCTHW=state.latents_BCTHW,
            sigma=state.sigmas[state.step].item(),
            # DiffSynth gives the time in the precision of the pipeline; so do we, for equal frames.
            timestep_B=timestep.unsqueeze(0).to(dtype=self._pipe.torch_dtype, device=self.device),
            index=state.step,
            num_steps=state.num_steps,
        )

    def _context(self, state: RenderState, branch: str, *, low_noise: bool) -> Context:
        """The embedded prompt of a branch, made in the first step that asks for it and kept for the others."""
        key = state.recipe.render_key, branch, low_noise
        known = self._contexts.pop(key, None)
        if known is None:
            conditioning = state.conditioning
            prompt_BLD = (
                conditioning.context_positive_BLD if branch == "positive" else conditioning.context_negative_BLD
            )
            assert prompt_BLD is not None
            known = self._forwards[1 if low_noise else 0].context(prompt_BLD, conditioning.clip_feature_BLD)
        self._contexts[key] = known  # at the end: the first is the one that was not used for longest
        while len(self._contexts) > MAX_CONTEXTS:
            self._contexts.pop(next(iter(self._contexts)))
        return known

    def _is_low_noise(self, recipe: RenderRecipe, timestep: torch.Tensor) -> bool:
        boundary = recipe.boundary_ratio if recipe.boundary_ratio is not None else self.card.boundary_ratio
        if self._pipe.dit2 is None or boundary is None:
            return False
        return timestep.item() < boundary * NUM_TRAIN_TIMESTEPS

    @contextmanager
    def _ready(self, recipe: RenderRecipe) -> Generator[None]:
        """Inside: the recipe's LoRAs and attention, no gradients, and a clear error when memory ends."""
        self._loras.fuse(recipe.loras)
        what = f"a render of {recipe.width}x{recipe.height} and {recipe.num_frames} frames"
        room = memory_of(self.device, what, "ask for fewer frames or a smaller size, or set tiling")
        with torch.no_grad(), attention(self._attention(recipe)), room:
            yield

    def _attention(self, recipe: RenderRecipe) -> str:
        return resolve_attention(
            recipe.attention,
            device=self.device,
            head_dim=self.model.head_dim,
            dtype=self._pipe.torch_dtype,
        )

    def _check_is_for_me(self, recipe: RenderRecipe) -> None:
        if recipe.model != self.card.name:
            raise ModelError(f"this engine holds {self.card.name}, the recipe asks for {recipe.model}; load that one")
        if recipe.weights_sha256 != self.model.weights_sha256:
            raise WeightsError(
                f"the recipe asks for weights {recipe.weights_sha256[:12]}, this engine holds "
                f"{self.model.weights_sha256[:12]}; load those weights or leave weights_sha256 out"
            )
        if recipe.precision != self.model.precision:
            raise RecipeError(
                f"the recipe asks for {recipe.precision}, this engine runs in {self.model.precision}; load it in that"
            )

    def _prompt_notes(self, recipe: RenderRecipe) -> tuple[str, ...]:
        limit = self.card.tokenizer_max_tokens
        notes = []
        for name in ("prompt", "negative_prompt"):
            ids = self._pipe.tokenizer(getattr(recipe, name), padding=False, truncation=False)
            num_tokens = ids.shape[1]
            if num_tokens > limit:
                notes.append(f"{name} has {num_tokens} tokens; the tokenizer stops at {limit}, the rest has no effect")
                logger.warning("%s key=%s", notes[-1], recipe.render_key[:12])
        return tuple(notes)

    def _synchronize(self) -> None:
        """A GPU works behind the program's back; without waiting, a stage's seconds would go to the next one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def to_frames(video_CTHW: torch.Tensor) -> np.ndarray:
    """Decoded video in -1..1 to uint8 THWC, cut off below the decimal point as DiffSynth does."""
    scaled = ((video_CTHW.permute(1, 2, 3, 0) + 1) * 127.5).clip(0, 255)
    return scaled.to(device="cpu", dtype=torch.uint8).numpy()


def preview_pictures() -> np.ndarray:
    """Drawn pictures of both worlds to fit previews to, (16, 64, 64, 3): any VAE encodes them in a second."""
    from sakuga.synth import make_sample

    return np.stack(
        [
            make_sample(seed, world, width=64, height=64, num_frames=5).video_THWC[-1]
            for seed in range(8)
            for world in ("live", "fairy")
        ]
    )
