"""The part of a model that is trained, and the loss of one micro-batch on it.

It holds the experts' DiTs (and VACE branches, frozen) as DiffSynth built them and walks over their blocks with the
engine's own `DitForward`, so what is trained is what is rendered. It knows nothing of optimizers, files or workers.

Shapes: B samples, C latent channels, T latent frames, h and w latent pixels, L text tokens, D width, S tokens of this
rank.     Run: pytest tests/unit/test_training_module.py
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch.utils.checkpoint import checkpoint

from sakuga.parallel.mesh import Mesh
from sakuga.parallel.sequence import SequenceAttention, SequenceShard
from sakuga.training import objective
from sakuga.wan.attention import training_kernel
from sakuga.wan.forward import Attentions, Context, DitForward, Tokens, run_block

if TYPE_CHECKING:
    from diffsynth.models.wan_video_dit import DiTBlock
    from diffsynth.pipelines.wan_video import WanVideoPipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Samples of one geometry, for one expert, on the device; fp32 but for what the model is given."""

    expert: int
    latents_BCThw: torch.Tensor
    noise_BCThw: torch.Tensor
    sigma_B: torch.Tensor
    share_B: torch.Tensor
    """What each sample's error counts in the step: its timestep's weight over the global batch size; 0 for a filler."""
    text_BLD: torch.Tensor
    """Padded with zero rows, as the pipeline does."""
    pixel_weight_B1Thw: torch.Tensor
    given: dict[str, torch.Tensor] = field(default_factory=dict)
    """Conditioning by the names of `DitForward.embed`, and `clip_feature_BLD`, `vace_context_BCTHW`."""
    first_frame_BCThw: torch.Tensor | None = None
    """Of models that keep the first frame clean in the latents (TI2V); it is no part of the error."""


class TrainingModule(torch.nn.Module):
    """Experts of a model; called with a micro-batch it gives the samples' errors."""

    def __init__(
        self,
        pipe: WanVideoPipeline,
        *,
        checkpointing: str = "none",
        compiled: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        pairs = [(pipe.dit, pipe.vace), (pipe.dit2, pipe.vace2)]
        self.experts = torch.nn.ModuleList(dit for dit, _ in pairs if dit is not None)
        self.vace = torch.nn.ModuleList(vace for _, vace in pairs if vace is not None)
        self.device = device or torch.device(pipe.device)
        self.mesh = Mesh.alone()
        self._kernel = training_kernel(self.device)
        run = torch.compile(run_block) if compiled else run_block
        walked = [*(dit.blocks for dit in self.experts), *(vace.vace_blocks for vace in self.vace)]
        for block in [block for blocks in walked for block in cast("Sequence[DiTBlock]", blocks)]:
            # The block's own call, so that what is hooked to modules (FSDP) sees it; DiffSynth's forward is not the
            # one that renders.
            block.forward = types.MethodType(_CALLS[checkpointing](run), block)
        vaces: list[torch.nn.Module | None] = list(self.vace) or [None] * len(self.experts)
        self.forwards = [
            DitForward(dit, vace, call=_call_module)  # ty: ignore[invalid-argument-type]  # of ModuleList
            for dit, vace in zip(self.experts, vaces, strict=True)
        ]

    def trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, batch: MicroBatch, *, raw: bool = False) -> torch.Tensor:
        """Mean squared error of each sample's velocity, (B,); where a sequence is shared, this rank's part of it.

        With `raw` the velocity itself, in patches of this rank's tokens.
        """
        tokens, velocity_BSP = self.velocity(
            batch, objective.noisy(batch.latents_BCThw, batch.noise_BCThw, batch.sigma_B)
        )
        if raw:
            return velocity_BSP
        target = objective.patches(batch.noise_BCThw - batch.latents_BCThw)
        weight = objective.patches(self._weight(batch))
        whole_B = weight.sum((1, 2))
        target, weight = (
            tokens.split(objective.pad_tokens(part, tokens.num_reference_tokens)) for part in (target, weight)
        )
        return objective.velocity_error(velocity_BSP, target, weight, whole_B)

    def velocity(self, batch: MicroBatch, noisy_BCThw: torch.Tensor) -> tuple[Tokens, torch.Tensor]:
        """What the model predicts at the micro-batch's noise levels, in patches, of this rank's tokens."""
        forward = self.forwards[batch.expert]
        given = dict(batch.given)
        clip, vace = given.pop("clip_feature_BLD", None), given.pop("vace_context_BCTHW", None)
        if batch.first_frame_BCThw is not None:
            noisy_BCThw = torch.cat([batch.first_frame_BCThw, noisy_BCThw[:, :, 1:]], dim=2)
        with torch.autocast(self.device.type, torch.bfloat16):
            context = forward.context(batch.text_BLD, clip)
            tokens = forward.embed(
                noisy_BCThw,
                objective.NUM_TRAIN_TIMESTEPS * batch.sigma_B,
                clean_first_frame=batch.first_frame_BCThw is not None,
                **given,
            )
            among_tokens = None
            if self.mesh.sequence.size > 1:
                shard = SequenceShard(mesh=self.mesh, length=tokens.x_BSD.shape[1])
                tokens = tokens.shared(shard.split, shard.gather)
                among_tokens = SequenceAttention(shard, self._kernel)
            *_, x = forward.walk(tokens, context, self._kernel, among_tokens=among_tokens, vace_context_BCTHW=vace)
            return tokens, forward.patches(tokens, x)

    @staticmethod
    def _weight(batch: MicroBatch) -> torch.Tensor:
        if batch.first_frame_BCThw is None:
            return batch.pixel_weight_B1Thw
        weight = batch.pixel_weight_B1Thw.clone()
        weight[:, :, 0] = 0
        return weight


def _call_module(
    block: DiTBlock, x: torch.Tensor, tokens: Tokens, context: Context, attend: Attentions
) -> torch.Tensor:
    return block(x, tokens, context, attend)


def _plain(run):
    return lambda block, *given: run(block, *given)


def _recomputed(run):
    return lambda block, x, *given: checkpoint(functools.partial(run, block), x, *given, use_reentrant=False)


def _offloaded(run):
    recomputed = _recomputed(run)

    def call(block, x, *given):
        with torch.autograd.graph.save_on_cpu(pin_memory=x.is_cuda):
            return recomputed(block, x, *given)

    return call


_CALLS = {"none": _plain, "recompute": _recomputed, "offload": _offloaded}
