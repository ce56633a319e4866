"""Tokens split over ranks, and self-attention over all of them: Ulysses, ring, or a ring of Ulysses groups.

Any number of tokens: shards are padded to equal size for the exchange only. After Ulysses' exchange, and in the last
block of a ring, the padding is cut off again before a kernel sees it, so that no kernel needs a mask and the result is
that of one process up to rounding. DiffSynth's own path attends to the padding.

Shapes: B batch, S tokens, N heads, D head size.     Run: pytest tests/dist/test_sequence.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from sakuga.parallel.mesh import Mesh
from sakuga.parallel.plan import shard_lengths
from sakuga.wan.attention import Attention


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceShard:
    """Which tokens of a sequence are this rank's."""

    mesh: Mesh
    length: int
    """Of the whole sequence."""

    @property
    def size(self) -> int:
        """Of every shard, padding included."""
        return -(-self.length // self.mesh.sequence.size)

    @property
    def real_length(self) -> int:
        """Of this rank's shard, without padding."""
        return shard_lengths(self.length, self.mesh.sequence.size)[self.mesh.sequence.index]

    def split(self, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """This rank's part of a tensor with all tokens, with zeros behind the last one."""
        start = min(self.size * self.mesh.sequence.index, self.length)
        stop = min(start + self.size, self.length)
        part = x.narrow(dim, start, stop - start)
        lacking = self.size - (stop - start)
        if lacking == 0:
            return part.clone(memory_format=torch.contiguous_format)  # a view would keep the whole alive
        shape = list(part.shape)
        shape[dim] = lacking
        return torch.cat([part, part.new_zeros(shape)], dim=dim)

    def gather(self, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """The tensor with all tokens, from the parts of all ranks."""
        return torch.cat(self.mesh.sequence.all_gather(x), dim=dim).narrow(dim, 0, self.length)

    @property
    def block_lengths(self) -> list[int]:
        """Real tokens that each place of the ring holds after Ulysses' exchange."""
        lengths = shard_lengths(self.length, self.mesh.sequence.size)
        degree = self.mesh.ulysses.size
        return [sum(lengths[place : place + degree]) for place in range(0, len(lengths), degree)]


class SequenceAttention:
    """Self-attention of a shard's queries over the tokens of all shards; a `wan.attention.Attention`."""

    def __init__(self, shard: SequenceShard, kernel: Attention) -> None:
        self.shard, self.kernel = shard, kernel

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
        mesh, shard = self.shard.mesh, self.shard
        length = shard.block_lengths[mesh.ring.index]
        # One exchange for all three.
        stacked = torch.cat([x.unflatten(2, (num_heads, -1)) for x in (q, k, v)], dim=0)
        q, k, v = _heads_for_tokens(stacked, mesh)[:, :length].chunk(3)
        if mesh.ring.size == 1:
            local_heads = q.shape[2]
            out = self.kernel(q.flatten(2), k.flatten(2), v.flatten(2), local_heads).unflatten(2, (local_heads, -1))
        else:
            out = ring_attention(q, k, v, self.shard)
        padding = shard.size * mesh.ulysses.size - length
        return _tokens_for_heads(functional.pad(out, (0, 0, 0, 0, 0, padding)), mesh).flatten(2)


def _heads_for_tokens(x_BSND: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """(B, s, N, D) of a shard to (B, s * ulysses, N / ulysses, D): fewer heads of more tokens."""
    degree = mesh.ulysses.size
    if degree == 1:
        return x_BSND
    by_target = x_BSND.unflatten(2, (degree, -1)).movedim(2, 0)  # (ulysses, B, s, N / ulysses, D)
    by_source = mesh.ulysses.all_to_all(by_target.contiguous())
    return by_source.movedim(0, 1).flatten(1, 2)


def _tokens_for_heads(x_BSND: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """The way back."""
    degree = mesh.ulysses.size
    if degree == 1:
        return x_BSND
    by_target = x_BSND.unflatten(1, (degree, -1)).movedim(1, 0)
    by_source = mesh.ulysses.all_to_all(by_target.contiguous())  # (ulysses, B, s, N / ulysses, D)
    return by_source.movedim(0, 2).flatten(2, 3)


def ring_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shard: SequenceShard) -> torch.Tensor:
    """Attention over the keys of all places of the ring, block by block (Liu et al. 2023); (B, S, N, D) each.

    Softmax over a union of blocks is the blocks' results, weighted by the exponentials of their log-sum-exps.
    yunchang's ring has no log-sum-exp on a CPU and merges with wrong weights there (error 0.37).
    """
    ring, lengths = shard.mesh.ring, shard.block_lengths
    padded = max(lengths)
    k, v = (functional.pad(x, (0, 0, 0, 0, 0, padded - x.shape[1])) for x in (k, v))
    merged: tuple[torch.Tensor, torch.Tensor] | None = None
    for turn in range(ring.size):
        length = lengths[(ring.index - turn) % ring.size]
        if length and q.shape[1]:
            block = attention_with_lse(q, k[:, :length], v[:, :length])
            merged = block if merged is None else _merge(*merged, *block)
        if turn < ring.size - 1:
            k, v = ring.pass_on([k, v])
    return q if merged is None else merged[0].to(q.dtype)


def _merge(
    out: torch.Tensor, lse: torch.Tensor, block: torch.Tensor, block_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.logaddexp(lse, block_lse)
    weight, block_weight = ((part - both).exp()[..., None] for part in (lse, block_lse))
    return out * weight + block * block_weight, both


def attention_with_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (B, S, N, D) in fp32 and its log-sum-exp (B, S, N), by PyTorch's fused kernels."""
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    if q.device.type == "cuda":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(*heads_first)[:2]
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads_first)[:2]
    return out.transpose(1, 2).float(), lse.transpose(1, 2).float()
