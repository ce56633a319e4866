"""Weights that are on the device only while they are needed: `wan/memory.py`'s plans, carried out.

A part's parameters have a home on the host; to lend them is to put copies on the device in their place, to give them
back is to put the home tensors there again. Nothing is copied back, since a render changes no weight.

Run: pytest tests/unit/test_offload.py
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch

from sakuga.wan.memory import MemoryPlan
from sakuga.wan.precision import is_quantized

if TYPE_CHECKING:
    from diffsynth.pipelines.wan_video import WanVideoPipeline

Table = dict[str, "torch.Tensor | None"]
"""Of one module: its parameters or its buffers, by name."""
PARTS = ("text_encoder", "image_encoder", "vae", "motion_controller", "dit", "dit2", "vace", "vace2")
"""Of a pipeline; each may be None."""
BLOCKS = {"dit": "blocks", "dit2": "blocks", "vace": "vace_blocks", "vace2": "vace_blocks"}
"""Where a part keeps the blocks that `layers` and `disk` pass through the device one at a time."""


class Lendable:
    """Parameters and buffers of a module that are lent to a device together."""

    def __init__(
        self, module: torch.nn.Module, device: torch.device, dtype: torch.dtype, without: Iterable[torch.nn.Module] = ()
    ) -> None:
        apart = {id(inner) for root in without for inner in root.modules()}
        self._tables = [
            table
            for owner in module.modules()
            if id(owner) not in apart
            for table in (cast("Table", owner._parameters), owner._buffers)
        ]
        self._device, self._dtype = device, dtype
        self._home: list[Table] | None = None
        self._ahead: tuple[list[Table], torch.cuda.Event] | None = None

    @property
    def is_lent(self) -> bool:
        return self._home is not None

    @property
    def num_bytes(self) -> int:
        """On the device."""
        return sum(_num_bytes(x, self._dtype) for table in self._tables for x in table.values() if x is not None)

    def pin(self) -> None:
        """Page-lock the home, so that a GPU copies from it while it computes; quantized weights stay as they are."""
        for table in self._tables:
            for name, x in table.items():
                if x is not None and not is_quantized(x) and not x.is_pinned():
                    table[name] = _parameter_like(x, x.detach().pin_memory())

    def lend_ahead(self, stream: torch.cuda.Stream) -> None:
        """Begin the copy on another stream."""
        if self.is_lent or self._ahead is not None:
            return
        with torch.cuda.stream(stream):
            copies = self._copies()
        self._ahead = copies, stream.record_event()

    def lend(self) -> None:
        if self.is_lent:
            return
        if self._ahead is None:
            copies = self._copies()
        else:
            copies, arrived = self._ahead
            self._ahead = None
            here = torch.cuda.current_stream(self._device)
            here.wait_event(arrived)
            for x in (x for table in copies for x in table.values() if x is not None):
                for plain in _plain_tensors(x):
                    plain.record_stream(here)  # made on the other stream: not to be reused there before this is done
        self._home = [dict(table) for table in self._tables]
        for table, lent in zip(self._tables, copies, strict=True):
            table.update(lent)

    def give_back(self) -> None:
        self._ahead = None  # of weights that may be others when they are lent again
        if self._home is None:
            return
        for table, home in zip(self._tables, self._home, strict=True):
            table.update(home)
        self._home = None

    def _copies(self) -> list[Table]:
        return [{name: None if x is None else self._copy(x) for name, x in table.items()} for table in self._tables]

    def _copy(self, x: torch.Tensor) -> torch.Tensor:
        as_is = is_quantized(x) or not x.is_floating_point()
        moved = x.detach().to(self._device, None if as_is else self._dtype, non_blocking=True)
        return _parameter_like(x, moved)


class Offloader:
    """Keeps a pipeline's parts where a memory plan wants them."""

    def __init__(self, pipe: WanVideoPipeline, plan: MemoryPlan, device: torch.device, dtype: torch.dtype) -> None:
        self.plan = plan
        self._parts: dict[str, Lendable] = {}
        self._blocks: dict[str, list[Lendable]] = {}
        self._by_block: dict[torch.nn.Module, tuple[Lendable, Lendable | None]] = {}
        self._stream = torch.cuda.Stream(device) if plan.kind == "layers" and device.type == "cuda" else None
        self._ahead: Lendable | None = None
        self._computed: torch.cuda.Event | None = None
        self._in_use: tuple[str, ...] | None = None
        if plan.kind == "resident":
            return
        # DiffSynth's units of the first stage ask for their networks by this, one after the other.
        vars(pipe)["load_models_to_device"] = lambda model_names: self.use(*model_names)
        for name in PARTS:
            module = getattr(pipe, name, None)
            if module is None or next(module.parameters()).is_meta:
                continue
            by_layer = name in BLOCKS and plan.kind in ("layers", "disk")
            blocks: Sequence[torch.nn.Module] = list(getattr(module, BLOCKS[name])) if by_layer else []
            self._parts[name] = Lendable(module, device, dtype, without=blocks)
            self._blocks[name] = [Lendable(block, device, dtype) for block in blocks]
            following: list[Lendable | None] = [*self._blocks[name], None]
            for place, block in enumerate(blocks):
                self._by_block[block] = self._blocks[name][place], following[place + 1]

    def use(self, *names: str) -> None:
        """Have these parts on the device and no others; of `layers` and `disk`, what stays there of their blocks."""
        if not self._parts or names == self._in_use:
            return
        self._in_use = None  # should it end halfway for want of memory
        self.give_back(but=names)
        budget = self.plan.budget_bytes or 0
        for name in (name for name in PARTS if name in names and name in self._parts):
            self._parts[name].lend()
            for block in self._blocks[name]:
                budget -= block.num_bytes
                if budget >= 0:
                    block.lend()
                elif self._stream is not None:
                    block.pin()
        self._in_use = names

    def give_back(self, but: Sequence[str] = ()) -> None:
        """Everything home; a LoRA is fused into the home tensors."""
        self._in_use = self._ahead = None
        for name, part in self._parts.items():
            if name not in but:
                part.give_back()
                for block in self._blocks[name]:
                    block.give_back()

    @contextmanager
    def block(self, block: torch.nn.Module) -> Generator[None]:
        """Inside: this block's weights are on the device, and the copy of the next one's is under way."""
        lendable, following = self._by_block.get(block, (None, None))
        if lendable is None or lendable.is_lent:
            yield
            return
        lendable.lend()
        self._ahead = None if self._ahead is lendable else self._ahead
        if following is not None and self._stream is not None and self._ahead is None:
            self._copy_ahead(following, self._stream)
        try:
            yield
        finally:
            if self._stream is not None:
                self._computed = torch.cuda.current_stream(self._stream.device).record_event()
            lendable.give_back()

    def _copy_ahead(self, block: Lendable, stream: torch.cuda.Stream) -> None:
        """One block at a time, and no sooner than the block before this one is computed and its memory free.

        Without waiting, the program would ask for the copies of all blocks while the first one computes.
        """
        if self._computed is not None:
            self._computed.synchronize()
        block.lend_ahead(stream)
        self._ahead = block


def _num_bytes(x: torch.Tensor, dtype: torch.dtype) -> int:
    if is_quantized(x):
        return sum(inner.nbytes for inner in _plain_tensors(x))
    return x.numel() * (dtype.itemsize if x.is_floating_point() else x.element_size())


def _plain_tensors(x: torch.Tensor) -> list[torch.Tensor]:
    """Itself, or what a quantized tensor is made of: torchao's subclasses list their tensors."""
    names: list[str] = getattr(x, "tensor_data_names", [])
    return [getattr(x, name) for name in names] if is_quantized(x) else [x]


def _parameter_like(x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """A parameter again where there was one."""
    return torch.nn.Parameter(moved, requires_grad=False) if isinstance(x, torch.nn.Parameter) else moved
