"""The tiled VAE on all ranks: each computes a share of the tiles, rank 0 blends them with DiffSynth's own code.

DiffSynth cuts a picture into overlapping tiles that know nothing of each other until they are blended. Rank 0 runs that
code unchanged, but in place of the VAE's network it gets tiles that were computed in rounds, one on each rank, and in
the order in which it asks for them: the result has the bits of one process. Rank 0 leads and the others follow, so the
text encoder and all else of the first stage runs on rank 0 alone.

A recipe without tiling is left to rank 0: tiles are blended, which would be another picture, and a plan changes none.

Shapes: B batch, C channels, T frames, H height, W width, pictures or latents.     Run: pytest tests/dist/test_vae.py
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from sakuga.parallel.mesh import Mesh

if TYPE_CHECKING:
    from diffsynth.models.wan_video_vae import WanVideoVAE

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRound:
    """What rank 0 asks for: one tile of each rank, fewer in the last round."""

    direction: str
    """"encode" or "decode"."""
    tiles_BCTHW: tuple[torch.Tensor, ...]
    """By rank, on the CPU."""


def tile_starts(length: int, size: int, stride: int) -> list[int]:
    """Where DiffSynth's tiles begin along a side: the last one is the first that reaches the end.

    >>> tile_starts(90, 30, 15), tile_starts(80, 30, 15), tile_starts(20, 30, 15)
    ([0, 15, 30, 45, 60], [0, 15, 30, 45, 60], [0])
    """
    return [start for start in range(0, length, stride) if start < stride or start - stride + size < length]


def cut(x_BCTHW: torch.Tensor, size: tuple[int, int], stride: tuple[int, int]) -> list[torch.Tensor]:
    """The tiles of a video in DiffSynth's order; height before width."""
    height, width = x_BCTHW.shape[3:]
    return [
        x_BCTHW[:, :, :, top : top + size[0], left : left + size[1]]
        for top in tile_starts(height, size[0], stride[0])
        for left in tile_starts(width, size[1], stride[1])
    ]


class SharedVae:
    """This rank's copy of a VAE, whose tiles all ranks share while rank 0 works for them."""

    def __init__(self, vae: WanVideoVAE, mesh: Mesh, device: torch.device, prepare: Callable[[], None]) -> None:
        """`prepare` brings the VAE onto the device, should it lie elsewhere."""
        self.vae, self.mesh, self.device, self.prepare = vae, mesh, device, prepare

    def from_rank_0(self, work: Callable[[], Value]) -> Value:
        """What `work` gives or raises on rank 0, on every rank; the others compute the tiles that it asks them for.

        Rank 0 leads with one message after the other, so an error of any rank leaves nobody in a collective.
        """
        if self.mesh.rank == 0:
            message = self._outcome(work)
            dist.broadcast_object_list([message], src=0)
        else:
            message = self._follow()
        value, error = message
        if error is not None:
            raise error
        return value

    def _follow(self) -> tuple:
        """Work on rounds until rank 0 sends its outcome."""
        message: list = [None]
        dist.broadcast_object_list(message, src=0)
        while isinstance(message[0], TileRound):
            self._work(message[0])
            dist.broadcast_object_list(message, src=0)
        return message[0]

    def _outcome(self, work: Callable[[], Value]) -> tuple:
        """(value, error), one of which is None."""
        try:
            with self._leading():
                return work(), None
        except Exception as error:  # noqa: BLE001  # raised again, on all ranks
            return None, portable(error)

    @contextmanager
    def _leading(self) -> Generator[None]:
        """Inside, tiled encoding and decoding is done by all ranks."""
        for direction in ("encode", "decode"):
            setattr(self.vae, f"tiled_{direction}", partial(self._blend, direction))
        try:
            yield
        finally:
            del self.vae.tiled_encode, self.vae.tiled_decode  # the class's own come to light again

    def _work(self, asked: TileRound) -> list[torch.Tensor]:
        """Compute this rank's tile. Rank 0 gets all of them, and raises what any rank raised."""
        outcome: torch.Tensor | Exception | None = None
        if self.mesh.rank < len(asked.tiles_BCTHW):
            try:
                outcome = self._compute(asked.direction, asked.tiles_BCTHW[self.mesh.rank])
            except Exception as error:  # noqa: BLE001  # raised by rank 0, which has to hear of it
                logger.warning("rank %d could not %s its tile: %s", self.mesh.rank, asked.direction, error)
                outcome = portable(error)
        outcomes: list | None = [None] * self.mesh.plan.world_size if self.mesh.rank == 0 else None
        dist.gather_object(outcome, outcomes, dst=0)
        for outcome in outcomes or ():
            if isinstance(outcome, Exception):
                raise outcome
        return (outcomes or [])[: len(asked.tiles_BCTHW)]

    def _compute(self, direction: str, tile_BCTHW: torch.Tensor) -> torch.Tensor:
        self.prepare()
        with torch.no_grad():
            network = getattr(type(self.vae.model), direction)
            return network(self.vae.model, tile_BCTHW.to(self.device), self.vae.scale).cpu()

    def _blend(
        self,
        direction: str,
        x_BCTHW: torch.Tensor,
        device: torch.device | str,
        tile_size: tuple[int, int],
        tile_stride: tuple[int, int],
    ) -> torch.Tensor:
        """DiffSynth's `tiled_encode` or `tiled_decode`, its network replaced by tiles that were computed before."""
        tiles = cut(x_BCTHW, tile_size, tile_stride)
        computed = self._rounds(direction, tiles)
        expected = iter(tiles)

        def next_tile(tile: torch.Tensor, _scale: object) -> torch.Tensor:
            assert torch.equal(tile.to("cpu"), next(expected)), "DiffSynth cuts tiles in another way than `cut`"
            return next(computed)

        blend = getattr(type(self.vae), f"tiled_{direction}")
        setattr(self.vae.model, direction, next_tile)
        try:
            return blend(self.vae, x_BCTHW, device, tile_size, tile_stride)
        finally:
            delattr(self.vae.model, direction)

    def _rounds(self, direction: str, tiles: list[torch.Tensor]) -> Generator[torch.Tensor]:
        """All tiles, computed as many at a time as there are ranks: more would fill rank 0's memory."""
        num_ranks = self.mesh.plan.world_size
        for first in range(0, len(tiles), num_ranks):
            # Cloned: a view would travel with all of the video.
            some = tuple(tile.cpu().clone() for tile in tiles[first : first + num_ranks])
            asked = TileRound(direction=direction, tiles_BCTHW=some)
            dist.broadcast_object_list([asked], src=0)
            yield from self._work(asked)


def portable(error: Exception) -> Exception:
    """An error that can be sent to other ranks: itself, or one of its text where it does not pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  # whatever a foreign class does there, the ranks must not hang for it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
