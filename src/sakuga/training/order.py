"""Which samples a step sees, with which noise: everything follows from the seed and a sample's number in the run.

A run of S steps of B samples sees the samples 0 ... S * B - 1. Sample g is data set entry g of endless epochs, each
shuffled anew, and its noise level, noise and text dropout are drawn from (seed, g): the same on any number of workers,
and the same after a resume. How samples are put together into micro-batches changes rounding only.

Run: pytest tests/unit/test_training_order.py
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One sample of a step."""

    sample: int
    """In the data set."""
    number: int
    """In the run: what its noise is drawn from."""
    quantile: float
    """0..1: where in the distribution of noise levels it lies."""
    drops_text: bool

    def noise(self, shape: Sequence[int], seed: int) -> torch.Tensor:
        """fp32 on the CPU, so that every device and every worker has the same."""
        return torch.randn(tuple(shape), generator=_generator(seed, self.number, 1))


def draws_of_step(step: int, *, batch_size: int, num_samples: int, seed: int, text_dropout: float) -> tuple[Draw, ...]:
    """The samples of a step; their quantiles are stratified, one in each of `batch_size` equal parts."""
    shuffled = torch.randperm(batch_size, generator=_generator(seed, step, 2))
    draws = []
    for place in range(batch_size):
        number = step * batch_size + place
        own = torch.rand(2, generator=_generator(seed, number, 0))
        draws.append(
            Draw(
                sample=_epoch(seed, number // num_samples, num_samples)[number % num_samples],
                number=number,
                quantile=float((shuffled[place] + own[0]) / batch_size),
                drops_text=bool(own[1] < text_dropout),
            )
        )
    return tuple(draws)


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, num_samples: int) -> tuple[int, ...]:
    return tuple(torch.randperm(num_samples, generator=_generator(seed, epoch, 3)).tolist())


def _generator(seed: int, number: int, purpose: int) -> torch.Generator:
    # Large odd factors, so that neighbouring numbers and purposes share no stream.
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)


def rounds(
    items: Sequence[Item], group_of: Callable[[Item], Hashable], *, num_workers: int, limit: int
) -> list[list[list[Item]]]:
    """Micro-batches of one group each, in rounds that have one for every worker; empty where none is left.

    All of a round are of one kind where `group_of` gives pairs (kind, rest): what is sharded over workers must be asked
    for by all of them at once.

    >>> rounds([1, 2, 3, 4, 11], lambda x: (x > 10, 0), num_workers=2, limit=2)
    [[[1, 2], [3, 4]], [[11], []]]
    >>> rounds([1, 2, 3], lambda x: (0, 0), num_workers=2, limit=8)
    [[[1, 2], [3]]]
    """
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        groups[group_of(item)].append(item)
    by_kind: dict[Hashable, list[list[Item]]] = defaultdict(list)
    for group, members in groups.items():
        kind = group[0] if isinstance(group, tuple) else group
        size = min(limit, -(-len(members) // num_workers))
        by_kind[kind] += [members[first : first + size] for first in range(0, len(members), size)]
    found = []
    for batches in by_kind.values():
        for first in range(0, len(batches), num_workers):
            turn = batches[first : first + num_workers]
            found.append(turn + [[] for _ in range(num_workers - len(turn))])
    return found
