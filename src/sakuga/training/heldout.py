"""The held-out loss: nine fixed noise levels, fixed noise, test samples; the curve to judge a run by.

A training loss says mostly which noise levels were drawn. Here every evaluation asks the same questions, so that
differences are the model's (diffusion-pipe's evaluation does so too).

Run: pytest tests/unit/test_training_loop.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sakuga.training.batches import Batches, geometry
from sakuga.training.module import MicroBatch, TrainingModule
from sakuga.training.order import Draw, rounds
from sakuga.training.prepared import PreparedSample
from sakuga.training.world import World

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the distribution of noise levels that training draws from."""
NOISE_SEED = 2**40
"""Far from the seeds of runs, whose noise it must not be."""


@torch.no_grad()
def held_out_loss(
    module: TrainingModule,
    batches: Batches,
    world: World,
    samples: Sequence[PreparedSample],
    relabel: Callable[[MicroBatch], MicroBatch] = lambda batch: batch,
) -> dict[str, float]:
    """Mean error at each quantile, `heldout/q10` to `q90`, and of all, `heldout/loss`; the same on every worker.

    `relabel` gives the micro-batches what is wanted of them where that is not the data, as in a distillation.
    """
    questions = [(index, place) for index in range(len(samples)) for place in range(len(QUANTILES))]
    sigmas = [batches.sigma_at(quantile) for quantile in QUANTILES]
    turns = rounds(
        questions,
        lambda question: (batches.expert_of(sigmas[question[1]]), geometry(samples[question[0]])),
        num_workers=world.num_batches,
        limit=batches.micro_batch_size,
    )
    sums = torch.zeros(len(QUANTILES), dtype=torch.float64, device=module.device)
    for turn in turns:
        mine = turn[world.batch_index]
        asked = mine or ([turn[0][0]] if world.sharded else [])
        if not asked:
            continue
        noises = [_noise(batches, samples[index], index, place) for index, place in asked]
        batch = batches.assemble(
            [samples[index] for index, _ in asked],
            noises,
            [sigmas[place] for _, place in asked],
            shares=[1.0] * len(asked),
            drops_text=[False] * len(asked),
        )
        errors = module(relabel(batch))
        if mine:
            sums.index_add_(0, torch.tensor([place for _, place in mine], device=module.device), errors.double())
    means = (world.sum(sums) / len(samples)).tolist()
    found = {f"heldout/q{round(100 * quantile)}": mean for quantile, mean in zip(QUANTILES, means, strict=True)}
    return {"heldout/loss": sum(means) / len(means), **found}


def _noise(batches: Batches, sample: PreparedSample, index: int, place: int) -> torch.Tensor:
    draw = Draw(sample=index, number=index * len(QUANTILES) + place, quantile=0.0, drops_text=False)
    return draw.noise(batches.video(sample)["latents_CThw"].shape, NOISE_SEED)
