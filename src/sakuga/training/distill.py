"""Step distillation: a LoRA with which a few steps without guidance end where the base's many with guidance do.

Phased consistency distillation (Wang et al. 2024, arXiv 2405.18407, after consistency models, Song et al. 2023, arXiv
2303.01469). The sampler's own noise levels cut time into phases, one for each step of the student, and each phase has
some places at which the student is trained. From a noisy sample at such a place the teacher, which is the same network
with the adapter switched off, takes its small guided steps to the next place (guidance folded in: Meng et al. 2023,
arXiv 2210.03142). Where the student's own jump to the end of the phase leads from there, its jump from the first place
has to lead as well. The student's Euler steps then follow the teacher's path. Stills come first, as in AnimateLCM (Wang
et al. 2024, arXiv 2402.00769).

What is wanted is a velocity, so a micro-batch is *relabelled*: it gets the latents and the noise between which the
wanted velocity leads through the same noisy sample, and the loss is flow matching's.

Shapes as in `training/module.py`.     Run: pytest tests/unit/test_training_distill.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch

from sakuga.engine.schedule import euler_step, noise_levels
from sakuga.training import adapters, objective
from sakuga.training.config import TrainConfig
from sakuga.training.module import MicroBatch, TrainingModule
from sakuga.training.world import World
from sakuga.wan.cards import ModelCard

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of noisy latents (B, C, T, h, w) at noise levels (B,)."""


@dataclass(frozen=True)
class Phases:
    """Where a distillation takes place: `num_phases` steps of the student, each with `num_places` where it is trained,
    `num_small` steps of the teacher apart."""

    num_phases: int
    num_places: int
    num_small: int
    shift: float

    @classmethod
    def of(cls, config: TrainConfig) -> Phases:
        return cls(config.distill_steps, config.distill_intervals, config.teacher_steps, config.flow_shift)

    @cached_property
    def levels(self) -> torch.Tensor:
        """The teacher's noise levels, from 1 to 0; those of the student are among them."""
        return noise_levels(self.num_phases * self.num_places * self.num_small, shift=self.shift)

    @property
    def places(self) -> list[float]:
        """The noise levels at which the student is trained, from 1 on."""
        return self.levels[: -1 : self.num_small].tolist()

    def sigma_at(self, quantile: float) -> float:
        """The place at this quantile of all of them; quantile 1 is the noisiest."""
        places = self.places
        return places[min(len(places) - 1, int((1 - quantile) * len(places)))]

    def wanted(
        self, x: torch.Tensor, sigma_B: torch.Tensor, teacher: Velocity, student: Velocity
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From x, at places of these noise levels: the velocity that leads to where the student should come, and what
        the teacher makes of x at the next place.
        """
        levels = self.levels.to(x.device)
        index_B = (levels[None] - sigma_B[:, None]).abs().argmin(1)
        length = self.num_places * self.num_small
        end_B = levels[(index_B // length + 1) * length]
        here, sigma = x, sigma_B
        for _ in range(self.num_small):
            index_B = index_B + 1
            here, sigma = self._leap(here, teacher, sigma, levels[index_B]), levels[index_B]
        end = here
        if bool((sigma != end_B).any()):  # at the end of a phase the teacher's steps are all there is
            end = self._leap(here, student, sigma, end_B)
        return (end - x) / (end_B - sigma_B).view(-1, 1, 1, 1, 1), here

    @staticmethod
    def _leap(x: torch.Tensor, velocity: Velocity, sigma_B: torch.Tensor, next_B: torch.Tensor) -> torch.Tensor:
        sigma, sigma_next = (part.view(-1, 1, 1, 1, 1) for part in (sigma_B, next_B))
        return euler_step(x, velocity(x, sigma_B), sigma, sigma_next)


class Distillation:
    """What `Trainer` asks for the micro-batches of a distillation."""

    def __init__(
        self,
        module: TrainingModule,
        config: TrainConfig,
        card: ModelCard,
        world: World,
        empty_text_LD: torch.Tensor,
        *,
        has_style: bool,
    ) -> None:
        # Adapters are switched on whole weights, the teacher steps whole sequences; `check_job` refuses anything else.
        assert not world.sharded and world.mesh.sequence.size == 1
        self.module, self.config, self.empty_text_LD = module, config, empty_text_LD
        self.guidance = card.guidance_scale if config.distill_guidance is None else config.distill_guidance
        self.phases, self.has_style = Phases.of(config), has_style

    def is_still(self, step: int) -> bool:
        return step < self.config.still_share * self.config.num_steps

    def is_styled(self, step: int) -> bool:
        """The same on every worker; styled steps and others take turns."""
        share = self.config.style_share
        return self.has_style and int((step + 1) * share) > int(step * share)

    def of_step(
        self, batch: MicroBatch, step: int, averaged: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[MicroBatch]:
        """What a training step learns from; inside `averaged` the student has its running mean, which is the target."""
        if self.is_still(step) and batch.first_frame_BCThw is None:  # a given first frame leaves nothing to learn
            batch = first_frame_of(batch)
        styled = self.is_styled(step)
        if self.config.distill_source == "data":
            yield self._relabelled(batch, _noisy(batch), styled, averaged)[0]
            return
        x, places = batch.noise_BCThw, self.phases.places
        for sigma in places:
            sigma_B = torch.full_like(batch.sigma_B, sigma)
            at_place = dataclasses.replace(batch, sigma_B=sigma_B, share_B=batch.share_B / len(places))
            to_learn, x = self._relabelled(at_place, x, styled, averaged)
            yield to_learn

    def held_out(self, batch: MicroBatch) -> MicroBatch:
        """What is asked of held-out videos: with the style LoRA where most steps are, the student its own target."""
        return self._relabelled(batch, _noisy(batch), self.has_style and self.config.style_share >= 0.5, nullcontext)[0]

    @torch.no_grad()
    def _relabelled(
        self, batch: MicroBatch, x: torch.Tensor, styled: bool, averaged: Callable[[], AbstractContextManager[None]]
    ) -> tuple[MicroBatch, torch.Tensor]:
        """The micro-batch with the velocity that is wanted at x, and x at the next place; the adapter is on then."""
        expert = self.module.experts[batch.expert]
        style = [adapters.STYLE] if styled else []
        unprompted = dataclasses.replace(batch, text_BLD=self.empty_text_LD.expand_as(batch.text_BLD))

        def teacher(x: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
            adapters.activate(expert, style)
            prompted, empty = (self._velocity(given, x, sigma_B) for given in (batch, unprompted))
            return empty + self.guidance * (prompted - empty)

        def student(x: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
            adapters.activate(expert, [adapters.ADAPTER, *style])
            with averaged():
                return self._velocity(batch, x, sigma_B)

        velocity, x_next = self.phases.wanted(x, batch.sigma_B, teacher, student)
        adapters.activate(expert, [adapters.ADAPTER, *style])
        sigma = batch.sigma_B.view(-1, 1, 1, 1, 1)
        relabelled = dataclasses.replace(
            batch, latents_BCThw=x - sigma * velocity, noise_BCThw=x + (1 - sigma) * velocity
        )
        return relabelled, x_next

    def _velocity(self, batch: MicroBatch, x: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
        tokens, velocity_BSP = self.module.velocity(dataclasses.replace(batch, sigma_B=sigma_B), x)
        return objective.unpatched(velocity_BSP[:, tokens.num_reference_tokens :].float(), x.shape)


def _noisy(batch: MicroBatch) -> torch.Tensor:
    return objective.noisy(batch.latents_BCThw, batch.noise_BCThw, batch.sigma_B)


def first_frame_of(batch: MicroBatch) -> MicroBatch:
    """Stills of videos: their first latent frame, of the tensors that run along the latents."""
    num_frames = batch.latents_BCThw.shape[2]
    given = {
        name: tensor[:, :, :1] if tensor.dim() == 5 and tensor.shape[2] == num_frames else tensor
        for name, tensor in batch.given.items()
    }
    return dataclasses.replace(
        batch,
        latents_BCThw=batch.latents_BCThw[:, :, :1],
        noise_BCThw=batch.noise_BCThw[:, :, :1],
        pixel_weight_B1Thw=batch.pixel_weight_B1Thw[:, :, :1],
        given=given,
    )
