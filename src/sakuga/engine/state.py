"""The values of a render: what goes in, what stands between two steps, what comes out.

A state is never changed in place: each step makes a new one, so an old one can be kept, saved or tried again.

Shapes: B batch, C channels, T frames (latent frames in latents), H height, W width, L text tokens, D width.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sakuga.recipe import RenderRecipe
from sakuga.wan.caching import BranchCache


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderInputs:
    """The contents that a recipe names by hash."""

    images: Mapping[str, Image.Image] = field(default_factory=dict)
    """By role, in the order of `recipe.images`; decoded, of any size."""
    videos: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By role: uint8 RGB, THWC, of any size and at least as long as the render."""
    lora_paths: tuple[Path, ...] = ()
    """In the order of `recipe.loras`."""
    notes: tuple[str, ...] = ()
    """What was left out of these contents when their files were read; goes into the receipt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """All that the DiT is given besides latents and time."""

    context_positive_BLD: torch.Tensor
    context_negative_BLD: torch.Tensor | None = None
    """None when no step needs guidance."""
    y_BCTHW: torch.Tensor | None = None
    """Mask and image, or control video, as further channels."""
    clip_feature_BLD: torch.Tensor | None = None
    reference_latents_BCTHW: torch.Tensor | None = None
    vace_context_BCTHW: torch.Tensor | None = None
    control_camera_BCTHW: torch.Tensor | None = None
    """Rays of the moving camera, six numbers for each pixel of the picture, four frames in one."""
    motion_modulation_B6D: torch.Tensor | None = None
    """What speed control adds to the modulation of all blocks, the same in every step."""
    first_frame_latents_BCTHW: torch.Tensor | None = None
    """Put back after every step by models that keep the image in the latents (TI2V-5B)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderState:
    """A render between two steps."""

    recipe: RenderRecipe
    conditioning: Conditioning
    latents_BCTHW: torch.Tensor
    """fp32 whatever the model's precision: fifty small steps are added up in it."""
    sigmas: torch.Tensor
    """`noise_levels` of the recipe, on the CPU."""
    step: int = 0
    """Steps done."""
    velocity_BCTHW: torch.Tensor | None = None
    """Of the last step, for a preview; not part of a snapshot."""
    caches: Mapping[str, BranchCache] = field(default_factory=dict)
    """What the recipe's step cache remembers, by branch and expert: "positive.0"."""
    num_blocks_run: int = 0
    """Blocks of the DiT over all branches and steps done; a step cache makes them fewer."""
    attention: str = "sdpa"
    """The kernel of all steps, chosen in the first stage where the recipe says "auto"."""
    plan: str = ""
    """`ExecutionPlan` under which the steps so far were done."""
    num_reference_frames: int = 0
    """Latent frames in front that are no part of the video (VACE with a reference image)."""
    encode_s: float = 0.0
    step_s: tuple[float, ...] = ()
    """Monotonic seconds of each step done."""
    notes: tuple[str, ...] = ()
    """What the user should know about this render, said again in the receipt."""

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def is_done(self) -> bool:
        return self.step == self.num_steps

    def without_caches(self) -> "RenderState":
        """As it may be stored before a step at which the recipe's step cache begins anew: a third of the size."""
        return dataclasses.replace(self, caches={})

    @property
    def refreshes_next(self) -> bool:
        """The next step needs nothing of what the step cache remembers."""
        cache = self.recipe.step_cache
        return cache is None or bool(cache.refresh_every and self.step % cache.refresh_every == 0)

    @property
    def is_light(self) -> bool:
        """A snapshot now needs nothing of the step cache's memory."""
        return self.refreshes_next or not self.caches

    def predicted_latents(self) -> torch.Tensor:
        """What the last step took for the finished video: the noisy latents without the noise that is left.

        Before the first step, and right after a restore, the latents as they are.
        """
        if self.velocity_BCTHW is None:
            return self.latents_BCTHW
        return self.latents_BCTHW - self.sigmas[self.step].item() * self.velocity_BCTHW

    def advanced(
        self,
        latents_BCTHW: torch.Tensor,
        velocity_BCTHW: torch.Tensor,
        step_s: float,
        caches: Mapping[str, BranchCache],
        num_blocks_run: int,
    ) -> "RenderState":
        """The state one step on, in which `num_blocks_run` blocks were run."""
        return dataclasses.replace(
            self,
            latents_BCTHW=latents_BCTHW,
            velocity_BCTHW=velocity_BCTHW,
            step=self.step + 1,
            step_s=(*self.step_s, step_s),
            caches=caches,
            num_blocks_run=self.num_blocks_run + num_blocks_run,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """A finished render."""

    frames_THWC: np.ndarray
    """uint8 RGB."""
    fps: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Monotonic seconds by stage: encode, denoise, decode, total."""
    step_s: tuple[float, ...] = ()
    num_blocks_run: int = 0
    attention: str = "sdpa"
    plan: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """Where a render stands."""

    stage: str
    """"encode" begins, "denoise" after 0 to num_steps steps, "decode" begins."""
    step: int
    num_steps: int
    elapsed_s: float
    """Since the render began, monotonic."""
    step_s: float | None = None
    """Of the step just done."""


OnEvent = Callable[[StepEvent], None]
