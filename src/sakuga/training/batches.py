"""From a step's number to micro-batches on the device: order, cached tensors, noise.

Run: pytest tests/unit/test_training_batches.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from sakuga.errors import DataError, TrainError
from sakuga.training import objective
from sakuga.training.config import TrainConfig
from sakuga.training.distill import Phases
from sakuga.training.module import MicroBatch
from sakuga.training.order import Draw, draws_of_step, rounds
from sakuga.training.prepared import GIVEN, LAYERS, LatentCache, PreparedSample, PreparedSet
from sakuga.wan.cards import ModelCard

KEPT_ENTRIES = 512
"""Of the cache, in memory: 0.3 GB of Wan-mini's clips, 2 GB of 480p clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One sample of a step with all that was drawn for it."""

    draw: Draw
    sample: PreparedSample
    sigma: float
    share: float
    """What its error counts; 0 for one that only keeps the workers in step."""


class Batches:
    """The samples of a split as micro-batches."""

    def __init__(
        self,
        prepared: PreparedSet,
        cache: LatentCache,
        config: TrainConfig,
        card: ModelCard,
        device: torch.device,
        *,
        micro_batch_size: int = 8,
    ) -> None:
        """Raises DataError when there is nothing to train on, TrainError for layer weights without layer maps."""
        self.prepared, self.cache, self.config, self.card, self.device = prepared, cache, config, card, device
        self.micro_batch_size = micro_batch_size
        self.samples = prepared.of("train")
        if not self.samples:
            raise DataError("the prepared data set has no training sample; see its report.json for what was rejected")
        self.entry: Callable[[str, str], dict[str, torch.Tensor]] = functools.lru_cache(maxsize=KEPT_ENTRIES)(cache.get)
        self._phases = Phases.of(config) if config.mode == "distill" else None
        self._gains: torch.Tensor | None = None
        if config.layer_weights:
            if "layers_GThw" not in self.entry("videos", self.samples[0].video_key):
                raise TrainError("layer_weights need layer maps, which this data set has not; leave them out")
            self._gains = torch.tensor([config.layer_weights.get(name, 0.0) for name in LAYERS])

    def of_step(self, step: int, *, num_batches: int, index: int, fill: bool = False) -> list[list[Entry]]:
        """This worker's micro-batches of a step; with `fill` as many as every other worker has.

        `num_batches` and `index` are those of `World`.
        """
        config = self.config
        draws = draws_of_step(
            step,
            batch_size=config.global_batch_size,
            num_samples=len(self.samples),
            seed=config.seed,
            text_dropout=config.text_dropout,
        )
        turns = rounds(
            [self._entry_of(draw) for draw in draws],
            lambda entry: (self.expert_of(entry.sigma), geometry(entry.sample)),
            num_workers=num_batches,
            limit=self.micro_batch_size,
        )
        mine = []
        for turn in turns:
            if turn[index]:
                mine.append(turn[index])
            elif fill:
                mine.append([_filler(turn[0][0])])
        return mine

    def _entry_of(self, draw: Draw) -> Entry:
        sigma = self.sigma_at(draw.quantile)
        weight = 1.0 if self._phases else objective.timestep_weight(sigma, self.config.loss_weighting)
        share = weight / self.config.global_batch_size
        return Entry(draw=draw, sample=self.samples[draw.sample], sigma=sigma, share=share)

    def sigma_at(self, quantile: float) -> float:
        """Of the noise levels that are trained; a distillation has only its places."""
        if self._phases:
            return self._phases.sigma_at(quantile)
        return objective.sigma_within(quantile, self.config.flow_shift, *self.sigma_range())

    def sigma_range(self) -> tuple[float, float]:
        """Noise levels that are trained: all, or those of the expert that the run is for."""
        boundary = self.card.boundary_ratio
        if self.config.expert is None or boundary is None:
            return 0.0, 1.0
        return (boundary, 1.0) if self.config.expert == "high" else (0.0, boundary)

    def expert_of(self, sigma: float) -> int:
        """0: the only or the high-noise one."""
        boundary = self.card.boundary_ratio
        return int(self.card.two_experts and boundary is not None and sigma < boundary)

    def micro_batch(self, entries: Sequence[Entry]) -> MicroBatch:
        """Entries of one geometry and one expert. Raises DataError when the cache lacks one."""
        noises = [
            entry.draw.noise(self.video(entry.sample)["latents_CThw"].shape, self.config.seed) for entry in entries
        ]
        return self.assemble(
            [entry.sample for entry in entries],
            noises,
            [entry.sigma for entry in entries],
            shares=[entry.share for entry in entries],
            drops_text=[entry.draw.drops_text for entry in entries],
        )

    def assemble(
        self,
        samples: Sequence[PreparedSample],
        noises: Sequence[torch.Tensor],
        sigmas: Sequence[float],
        *,
        shares: Sequence[float],
        drops_text: Sequence[bool],
    ) -> MicroBatch:
        """What a module is called with, for samples of one geometry."""
        videos = [self.video(sample) for sample in samples]
        names = set(videos[0])

        def stacked(name: str) -> torch.Tensor:
            return torch.stack([video[name] for video in videos]).to(self.device)

        latents = stacked("latents_CThw").float()
        layers = stacked("layers_GThw") if self._gains is not None else None
        gains = None if self._gains is None else self._gains.to(self.device)
        first = stacked("first_frame_latents_CThw").float() if "first_frame_latents_CThw" in names else None
        return MicroBatch(
            expert=self.expert_of(sigmas[0]),
            latents_BCThw=latents,
            noise_BCThw=torch.stack(list(noises)).to(self.device),
            sigma_B=torch.tensor(sigmas, dtype=torch.float32, device=self.device),
            share_B=torch.tensor(shares, dtype=torch.float32, device=self.device),
            text_BLD=torch.stack(
                [self.empty_text() if drops else self._text(s.text_key) for s, drops in zip(samples, drops_text)]
            ),
            pixel_weight_B1Thw=objective.pixel_weights(latents, layers, gains),
            given={ours: stacked(name).float() for name, ours in GIVEN.items() if name in names},
            first_frame_BCThw=first,
        )

    def video(self, sample: PreparedSample) -> dict[str, torch.Tensor]:
        return self.entry("videos", sample.video_key)

    def empty_text(self) -> torch.Tensor:
        """(L, D), as of a sample whose text was dropped."""
        return self._text(self.prepared.empty_text_key)

    def _text(self, key: str) -> torch.Tensor:
        context_LD = self.entry("texts", key)["context_LD"]
        lacking = self.card.tokenizer_max_tokens - len(context_LD)
        return functional.pad(context_LD.float(), (0, 0, 0, lacking)).to(self.device)


def geometry(sample: PreparedSample) -> tuple[int, int, int]:
    return sample.width, sample.height, sample.num_frames


def _filler(entry: Entry) -> Entry:
    """Computed and counted as nothing, so that all workers ask sharded weights for the same."""
    return Entry(draw=entry.draw, sample=entry.sample, sigma=entry.sigma, share=0.0)
