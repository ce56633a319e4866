"""Which exact attention kernel is fastest here: tried at the shape of the render, and each held to fp32.

A kernel that is fast and wrong is worse than none, and packages of kernels come in many builds. So "auto" believes
nobody: it runs each on random numbers, compares some of its rows with attention in fp32 and takes the fastest of those
that agree.     Run: pytest tests/unit/test_attention.py
"""

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sakuga.errors import AttentionError
from sakuga.wan.attention import kernel, sdpa, usable_kernels

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Of the norm, against fp32."""
CHECKED_ROWS = 64
"""Queries compared: attention of 64 of 75,600 tokens costs nothing, and a wrong kernel is wrong everywhere."""
NUM_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How one kernel did."""

    name: str
    seconds: float | None = None
    """Median of `NUM_RUNS`; None for a kernel that was not timed."""
    relative_error: float | None = None
    refused: str | None = None
    """Why it was not taken into account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The kernel taken, and what it was chosen from."""

    name: str
    trials: tuple[Trial, ...] = ()
    """Empty where there was nothing to choose."""

    def report(self) -> list[dict[str, object]]:
        """For the receipt."""
        return [
            {"name": trial.name}
            | ({} if trial.seconds is None else {"seconds": round(trial.seconds, 5)})
            | ({} if trial.relative_error is None else {"relative_error": round(trial.relative_error, 6)})
            | ({} if trial.refused is None else {"refused": trial.refused})
            for trial in self.trials
        ]


def choose_attention(
    *,
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    names: Sequence[str] | None = None,
) -> Choice:
    """The fastest of `names` (None: of all exact kernels that run here) at this shape that is as exact as it should be.

    Raises AttentionError when none is.
    """
    names = usable_kernels(device=device, head_dim=head_dim, dtype=dtype) if names is None else names
    if len(names) == 1:
        return Choice(name=names[0])
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, num_tokens, num_heads * head_dim)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    rows = torch.linspace(0, num_tokens - 1, min(CHECKED_ROWS, num_tokens), device=device).long()
    expected = sdpa(q[:, rows].float(), k.float(), v.float(), num_heads)
    trials = tuple(_try(name, (q, k, v), num_heads, rows, expected) for name in names)
    for trial in trials:
        logger.info("attention %s", trial)
    passed = [(trial.seconds, trial.name) for trial in trials if trial.refused is None and trial.seconds is not None]
    if not passed:
        reasons = "; ".join(f"{trial.name}: {trial.refused}" for trial in trials)
        raise AttentionError(f"no attention kernel works here ({reasons}); name one, or render in fp32")
    return Choice(name=min(passed)[1], trials=trials)


def _try(
    name: str,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_heads: int,
    rows: torch.Tensor,
    expected: torch.Tensor,
) -> Trial:
    device, run = qkv[0].device, kernel(name)
    try:
        out = run(*qkv, num_heads)[:, rows].float()
        error = float((out - expected).norm() / expected.norm())
        seconds = []
        for _ in range(NUM_RUNS):
            _wait(device)
            began = time.monotonic()
            run(*qkv, num_heads)
            _wait(device)
            seconds.append(time.monotonic() - began)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # noqa: BLE001  # a package may be broken in any way, and the others still count
        return Trial(name=name, refused=str(failure).strip().split("\n", 1)[0] or type(failure).__name__)
    limit = MAX_RELATIVE_ERROR[qkv[0].dtype]
    refused = None if error <= limit else f"relative error {error:.3g} against fp32, at most {limit:g} is exact"
    return Trial(name=name, seconds=statistics.median(seconds), relative_error=error, refused=refused)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
