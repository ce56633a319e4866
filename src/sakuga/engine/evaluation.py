"""One denoise step of one CFG branch on this process: the DiT's parts, run when a step cache asks for them.

Shapes as in `engine/state.py`; S video tokens.     Run: pytest tests/unit/test_engine_cache.py
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch

from sakuga.engine.state import Conditioning
from sakuga.wan.attention import Attention
from sakuga.wan.forward import Context, DitForward, Tokens


@dataclass(kw_only=True)
class LocalEvaluation:
    """`wan.caching.Evaluation` on one process."""

    forward: DitForward
    context: Context
    kernel: Attention
    conditioning: Conditioning
    latents_BCTHW: torch.Tensor
    """fp32, as the state holds them."""
    sigma: float
    timestep_B: torch.Tensor
    """In the precision of the model, in which it also gets the latents."""
    index: int
    num_steps: int
    num_blocks_run: int = 0
    _last: torch.Tensor = field(init=False)

    @cached_property
    def _tokens(self) -> Tokens:
        return self._embed()

    def _embed(self) -> Tokens:
        return self.forward.embed(
            self.latents_BCTHW.to(self.timestep_B.dtype),
            self.timestep_B,
            y_BCTHW=self.conditioning.y_BCTHW,
            reference_latents_BCTHW=self.conditioning.reference_latents_BCTHW,
            control_camera_BCTHW=self.conditioning.control_camera_BCTHW,
            motion_modulation_B6D=self.conditioning.motion_modulation_B6D,
            clean_first_frame=self.conditioning.first_frame_latents_BCTHW is not None,
        )

    @cached_property
    def _walk(self) -> Iterator[torch.Tensor]:
        return self.forward.walk(
            self._tokens,
            self.context,
            self.kernel,
            among_tokens=self._among_tokens,
            vace_context_BCTHW=self.conditioning.vace_context_BCTHW,
        )

    @property
    def _among_tokens(self) -> Attention:
        return self.kernel

    def modulation(self) -> torch.Tensor:
        return self._tokens.modulation_BR6D

    def embedded(self) -> torch.Tensor:
        return self._tokens.x_BSD

    def after_all_blocks(self) -> torch.Tensor:
        while self.num_blocks_run < self.forward.num_blocks:
            self._advance()
        return self._last

    def head(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        return self.forward.head(self._tokens, hidden_BSD)

    def mean_abs(self, x: torch.Tensor) -> float:
        return x.float().abs().mean().item()

    def _advance(self) -> None:
        self._last = next(self._walk)
        self.num_blocks_run += 1
