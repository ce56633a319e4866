"""The first stage: prompts, images and videos become latents and conditioning, by DiffSynth's own pipeline units.

Only the units of the catalogue's tasks run; what they give is copied into a typed `Conditioning`. The one case that
DiffSynth has no unit for, a 36-channel model without an image, comes from `wan/conditioning.py`.

Shapes as in `engine/state.py`.     Run: pytest tests/unit/test_engine_equality.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from sakuga.engine.state import Conditioning, RenderInputs
from sakuga.errors import VideoError
from sakuga.media import fit_image
from sakuga.recipe import RenderRecipe
from sakuga.wan.conditioning import image_conditioning

if TYPE_CHECKING:
    from diffsynth.pipelines.wan_video import WanVideoPipeline

UNITS = (
    "WanVideoUnit_NoiseInitializer",
    "WanVideoUnit_PromptEmbedder",
    "WanVideoUnit_InputVideoEmbedder",
    "WanVideoUnit_ImageEmbedderVAE",
    "WanVideoUnit_ImageEmbedderCLIP",
    "WanVideoUnit_ImageEmbedderFused",
    "WanVideoUnit_FunControl",
    "WanVideoUnit_FunReference",
    "WanVideoUnit_FunCameraControl",
    "WanVideoUnit_SpeedControl",
    "WanVideoUnit_VACE",
)
"""Those of `pipe.units` that a render of the catalogue's tasks needs; they run in the pipeline's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What the stage gives."""

    latents_BCTHW: torch.Tensor
    conditioning: Conditioning
    num_reference_frames: int


def encode(pipe: "WanVideoPipeline", recipe: RenderRecipe, inputs: RenderInputs) -> Encoded:
    """Run the units for one recipe. Raises VideoError for a video that is shorter than the render."""
    pipe.scheduler.set_timesteps(
        recipe.num_inference_steps, denoising_strength=recipe.denoising_strength, shift=recipe.flow_shift
    )
    shared = _shared(pipe, recipe, inputs)
    positive: dict = {"prompt": recipe.prompt, "positive": True}
    negative: dict = {"negative_prompt": recipe.negative_prompt, "positive": False}
    # The camera's unit makes another `y` in place of the image's, which would encode the whole video in vain.
    units = set(UNITS) - ({"WanVideoUnit_ImageEmbedderVAE"} if recipe.camera_direction else set())
    for unit in pipe.units:
        if type(unit).__name__ in units:
            done = pipe.unit_runner(unit, pipe, shared, positive, negative)
            shared, positive, negative = done  # ty: ignore[invalid-assignment]  # three, though annotated as two
    y = shared.get("y")
    if y is None and pipe.dit.require_vae_embedding and pipe.dit.in_dim > shared["latents"].shape[1]:
        y = _grey_conditioning(pipe, recipe, tiling_arguments(recipe))
    reference = shared.get("vace_reference_image")
    return Encoded(
        latents_BCTHW=shared["latents"],
        conditioning=Conditioning(
            context_positive_BLD=positive["context"],
            context_negative_BLD=negative["context"] if shared["cfg_scale"] != 1 else None,
            y_BCTHW=y,
            clip_feature_BLD=shared.get("clip_feature"),
            reference_latents_BCTHW=shared.get("reference_latents"),
            vace_context_BCTHW=shared.get("vace_context"),
            control_camera_BCTHW=shared.get("control_camera_latents_input"),
            motion_modulation_B6D=_motion_modulation(pipe, shared.get("motion_bucket_id")),
            first_frame_latents_BCTHW=shared.get("first_frame_latents"),
        ),
        num_reference_frames=0 if reference is None else len(reference),
    )


def needs_guidance(recipe: RenderRecipe) -> bool:
    """Whether any step runs the model a second time, for the negative prompt."""
    return recipe.guidance_scale != 1 or recipe.guidance_scale_2 not in (None, 1)


def tiling_arguments(recipe: RenderRecipe) -> dict[str, object]:
    """The VAE's tiling as DiffSynth takes it: height before width, in latent units."""
    tiling = recipe.tiling
    if tiling is None:
        return {"tiled": False}
    return {
        "tiled": True,
        "tile_size": (tiling.tile_height, tiling.tile_width),
        "tile_stride": (tiling.stride_height, tiling.stride_width),
    }


def _shared(pipe: "WanVideoPipeline", recipe: RenderRecipe, inputs: RenderInputs) -> dict:
    """The units' common inputs, under DiffSynth's names."""
    size = recipe.width, recipe.height
    images = {role: fit_image(image, *size) for role, image in inputs.images.items()}
    videos = {role: _fit_video(role, video, recipe) for role, video in inputs.videos.items()}
    reference = images.get("reference_image")
    vace = pipe.vace is not None
    return {
        "input_image": images.get("input_image"),
        "end_image": images.get("end_image"),
        "reference_image": None if vace else reference,
        "vace_reference_image": [reference] if vace and reference is not None else None,
        "input_video": videos.get("input_video"),
        "control_video": videos.get("control_video"),
        "vace_video": videos.get("vace_video"),
        "vace_video_mask": videos.get("vace_mask"),
        "vace_scale": 1.0,
        "camera_control_direction": recipe.camera_direction,
        "camera_control_speed": recipe.camera_speed,
        "motion_bucket_id": recipe.motion_bucket_id,
        "denoising_strength": recipe.denoising_strength,
        "seed": recipe.seed,
        # On the CPU, so that the same seed is the same noise on every device.
        "rand_device": "cpu",
        "width": recipe.width,
        "height": recipe.height,
        "num_frames": recipe.num_frames,
        # The units only ask whether it is 1.
        "cfg_scale": 2.0 if needs_guidance(recipe) else 1.0,
        **({"tile_size": None, "tile_stride": None} | tiling_arguments(recipe)),
    }


def _motion_modulation(pipe: "WanVideoPipeline", motion_bucket_B: torch.Tensor | None) -> torch.Tensor | None:
    """Speed control depends on no time and no latents, so it is computed once."""
    if motion_bucket_B is None:
        return None
    pipe.load_models_to_device(["motion_controller"])
    return pipe.motion_controller(motion_bucket_B).unflatten(1, (6, pipe.dit.dim))


def _fit_video(role: str, video_THWC: np.ndarray, recipe: RenderRecipe) -> list[Image.Image]:
    if len(video_THWC) < recipe.num_frames:
        raise VideoError(
            f"{role} has {len(video_THWC)} frames and {recipe.num_frames} are to be rendered; "
            "give a longer one or render fewer frames"
        )
    frames = (Image.fromarray(frame) for frame in video_THWC[: recipe.num_frames])
    return [fit_image(frame, recipe.width, recipe.height) for frame in frames]


def _grey_conditioning(pipe: "WanVideoPipeline", recipe: RenderRecipe, tiling: Mapping[str, object]) -> torch.Tensor:
    def vae_encode(video_CTHW: torch.Tensor) -> torch.Tensor:
        video = video_CTHW.to(dtype=pipe.torch_dtype, device=pipe.device)
        latents = pipe.vae.encode([video], device=pipe.device, **tiling)[0]
        return latents.to(dtype=pipe.torch_dtype, device=pipe.device)

    pipe.load_models_to_device(["vae"])
    return image_conditioning(
        vae_encode, None, None, num_frames=recipe.num_frames, height=recipe.height, width=recipe.width
    )
