"""The engine in one process: start, step, finish, on DiffSynth's models with a loop of our own.

It knows recipes and tensors. It knows nothing of Ray, jobs, files of results or other ranks.

Shapes as in `engine/state.py`.     Run: pytest tests/unit/test_engine_equality.py tests/unit/test_engine_local.py
"""

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sakuga.engine.admission import admit, prompt_notes
from sakuga.engine.encode import encode, tiling_arguments
from sakuga.engine.evaluation import LocalEvaluation
from sakuga.engine.notes import input_notes
from sakuga.engine.pictures import preview_pictures, to_frames
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.receipt import build_receipt
from sakuga.engine.schedule import NUM_TRAIN_TIMESTEPS, euler_step, noise_levels
from sakuga.engine.snapshot import load_state, save_state
from sakuga.engine.state import OnEvent, RenderInputs, RenderState, StepEvent, Video
from sakuga.errors import NumericsError, PlanError, RecipeError
from sakuga.recipe import RenderRecipe
from sakuga.settings import from_environment
from sakuga.wan.attention import attention, check_attention, kernel, usable_kernels
from sakuga.wan.attention_choice import Choice, choose_attention
from sakuga.wan.caching import EMPTY, BranchCache, full_velocity, make_rule
from sakuga.wan.cards import ModelCard
from sakuga.wan.catalogue import card
from sakuga.wan.device import check_device, memory_bytes, memory_of
from sakuga.wan.forward import Context, DitForward
from sakuga.wan.loading import STAGES, LoadedModel, load_model, locate, stdout_to_log
from sakuga.wan.lora import FileBase, LoraSwitch
from sakuga.wan.offload import Offloader
from sakuga.wan.precision import check_precision
from sakuga.wan.preview import LatentToRgb, fit_latent_to_rgb

if TYPE_CHECKING:
    from diffsynth.pipelines.wan_video import WanVideoPipeline

logger = logging.getLogger(__name__)

EXPERT_PARTS = {False: ("dit", "vace"), True: ("dit2", "vace2")}
"""What a step needs on the device, for the only or high-noise expert and for the low-noise one."""
MAX_CONTEXTS = 8
"""Embedded prompts kept: two branches of four renders that take turns; one of a 14B model is 8 MB."""


class LocalEngine:
    """Renders recipes of one loaded model, one at a time.

    LoRAs belong to the recipe: the engine fuses those that the next render needs and takes out the others, after
    which the base weights are what they were, bit for bit. Two renders may take turns step by step.
    """

    def __init__(
        self, model: LoadedModel, execution: ExecutionPlan | None = None, *, memory_bytes: int | None = None
    ) -> None:
        """`execution.memory` must be the plan that the model was loaded with. Renders that would not fit into
        `memory_bytes` of the device, by the card's shape, are refused before they begin; None refuses nothing.
        """
        self.memory_bytes = memory_bytes
        self.model = model
        self.execution = execution or ExecutionPlan(memory=model.memory)
        self.device = torch.device(model.pipe.device)
        pipe, dtype = model.pipe, model.pipe.torch_dtype
        base = FileBase(model.dit_files, dtype) if model.dit_files else None
        hot = self.execution.hot_loras
        self._loras = LoraSwitch(model.experts, base, hot=hot, device=self.device, dtype=dtype)
        self._offloader = Offloader(pipe, model.memory, self.device, dtype)
        self._forwards = [
            DitForward(dit, vace, place=self._offloader.block, compiled=self.execution.compile)
            for dit, vace in ((pipe.dit, pipe.vace), (pipe.dit2, pipe.vace2))
            if dit is not None
        ]
        self._contexts: dict[tuple[str, str, bool], Context] = {}
        self._latent_to_rgb: LatentToRgb | None = None
        self._choices: dict[int, Choice] = {}

    @classmethod
    def load(
        cls,
        model: str | ModelCard,
        weights: str | Path | None = None,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        execution: ExecutionPlan | None = None,
        stages: Sequence[str] = STAGES,
    ) -> "LocalEngine":
        """Load a card: from a folder, from s3://bucket/prefix or, None, from the package.

        With fewer `stages`, only what they need: another engine takes the state over, by a snapshot if it is far away.
        Raises DeviceError, PrecisionError, PlanError, ModelError, WeightsError or StorageError.
        """
        check_device(device)  # before 28 GB are downloaded for it
        check_precision(precision, torch.device(device))
        settings = from_environment()
        chosen = card(model) if isinstance(model, str) else model
        found = locate(chosen, weights, cache_dir=settings.cache_dir, endpoint_url=settings.s3_endpoint_url)
        plan = execution or ExecutionPlan()
        plan.check(torch.device(device))
        loaded = load_model(found, device=device, precision=precision, memory=plan.memory, stages=stages)
        return cls(loaded, plan, memory_bytes=memory_bytes(torch.device(device)))

    @property
    def card(self) -> ModelCard:
        return self.model.card

    @property
    def _pipe(self) -> "WanVideoPipeline":
        return self.model.pipe

    def start(self, recipe: RenderRecipe, inputs: RenderInputs) -> RenderState:
        """Encode: check that this engine can render the recipe, fuse its LoRAs, make latents and conditioning.

        Raises UnverifiedError, MemoryLimitError, RecipeError, ModelError, GeometryError, AttentionError, LoraError,
        VideoError or WeightsError.
        """
        began = time.monotonic()
        self._check_stage("encode")
        admitted = admit(recipe, self.model, self.execution, self.memory_bytes)
        self.add_loras(inputs.lora_paths)
        notes = (*admitted, *input_notes(recipe, inputs), *prompt_notes(recipe, self.model))
        kernel_name = self._choose_attention(recipe)
        with self._ready(recipe, kernel_name), stdout_to_log():
            encoded = encode(self._pipe, recipe, inputs)
        self._synchronize()
        return RenderState(
            recipe=recipe,
            attention=kernel_name,
            plan=str(self.execution),
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
        self._check_stage("denoise")
        began = time.monotonic()
        sigma, sigma_next = state.sigmas[state.step], state.sigmas[state.step + 1]
        timestep = sigma * NUM_TRAIN_TIMESTEPS
        with self._ready(state.recipe, state.attention, *EXPERT_PARTS[self._is_low_noise(state.recipe, timestep)]):
            velocity, caches, num_blocks_run = self._guided_velocity(state, timestep)
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
        self._check_stage("decode")
        if not state.is_done:
            raise RecipeError(f"{state.num_steps - state.step} steps are still to do; call step() before finish()")
        began = time.monotonic()
        latents = state.latents_BCTHW[:, :, state.num_reference_frames :]
        with self._ready(state.recipe, state.attention, "vae"), stdout_to_log():
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
            attention=state.attention,
            plan=state.plan,
            notes=state.notes,
        )

    def preview(self, state: RenderState, frame: float = 0.5) -> np.ndarray:
        """What a frame of the video will about look like, uint8 HWC; `frame` from 0 (first) to 1 (last).

        Costs a matrix product: no step, no decoder. The first call fits the map from latents to colours to the VAE.
        """
        if self._latent_to_rgb is None:
            self._check_stage("decode")  # fitted with the VAE
            self._latent_to_rgb = fit_latent_to_rgb(self._encode_frame, preview_pictures())
        latents = state.predicted_latents()[0, :, state.num_reference_frames :]
        index = round(frame * (latents.shape[1] - 1))
        return self._latent_to_rgb.picture(latents[:, index], state.recipe.width, state.recipe.height)

    def _encode_frame(self, video_CTHW: torch.Tensor) -> torch.Tensor:
        self._offloader.use("vae")
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
        return self._as_here(state, admit(state.recipe, self.model, self.execution, self.memory_bytes))

    def _as_here(self, state: RenderState, admitted: tuple[str, ...]) -> RenderState:
        """A state that another plan or another machine began, with a note where the rounding changes."""
        plan, kernel_name = str(self.execution), self._choose_attention(state.recipe)
        notes = tuple(dict.fromkeys((*state.notes, *admitted)))
        if state.attention in usable_kernels(
            device=self.device, head_dim=self.model.head_dim, dtype=self._pipe.torch_dtype
        ):
            kernel_name = state.attention
        before, now = (state.plan, state.attention), (plan, kernel_name)
        if before != now:
            told = f"resumed after step {state.step} with {plan}, {kernel_name}; begun with {', '.join(before)}"
            notes = (*notes, told)
        return replace(state, plan=plan, attention=kernel_name, notes=notes)

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
            attention_trials=[row for choice in self._choices.values() for row in choice.report()],
            # An engine that only decodes has never seen the files.
            loras=[
                self._loras.report(ref) if "denoise" in self.model.stages else {"sha256": ref.sha256}
                for ref in recipe.loras
            ],
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
            kernel=kernel(state.attention),
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
    def _ready(self, recipe: RenderRecipe, kernel_name: str, *parts: str) -> Generator[None]:
        """Inside: these parts on the device, the recipe's LoRAs and attention, no gradients, E_MEMORY when it ends."""
        what = f"a render of {recipe.width}x{recipe.height} and {recipe.num_frames} frames"
        cure = "ask for fewer frames or a smaller size, set tiling, or take a memory plan such as components"
        with torch.no_grad(), attention(kernel_name), memory_of(self.device, what, cure):
            if "denoise" in self.model.stages and not self._loras.is_applied(recipe.loras):
                self._offloader.give_back()  # a LoRA is fused into the weights at home
                self._loras.apply(recipe.loras)
            self._offloader.use(*parts)
            yield

    def _choose_attention(self, recipe: RenderRecipe) -> str:
        """The kernel that the recipe names, or for "auto" the fastest exact one at its shape, tried once for each."""
        dtype, head_dim = self._pipe.torch_dtype, self.model.head_dim
        if recipe.attention != "auto":
            check_attention(recipe.attention, device=self.device, head_dim=head_dim, dtype=dtype)
            return recipe.attention
        _, _, frames, height, width = self.card.latent_shape(recipe.width, recipe.height, recipe.num_frames)
        num_tokens = frames * height * width // 4  # patches of 2 x 2
        if num_tokens not in self._choices:
            with memory_of(
                self.device, f"attention over {num_tokens} tokens", "ask for fewer frames or a smaller size"
            ):
                self._choices[num_tokens] = choose_attention(
                    num_tokens=num_tokens,
                    num_heads=self.model.num_heads,
                    head_dim=head_dim,
                    device=self.device,
                    dtype=dtype,
                )
        return self._choices[num_tokens].name

    def _check_stage(self, stage: str) -> None:
        if stage not in self.model.stages:
            here = ", ".join(self.model.stages)
            raise PlanError(f"this engine was loaded for {here} only; give the state to one that does {stage}")

    def _synchronize(self) -> None:
        """A GPU works behind the program's back; without waiting, a stage's seconds would go to the next one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
