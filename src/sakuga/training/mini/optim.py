"""Muon for matrices, AdamW for the rest, one warm-up and decay for both, and an exponential mean of the weights.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix and replaces it by
the nearest orthogonal matrix, found by five Newton-Schulz steps. At this scale it needs about half of AdamW's steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch


def orthogonalised(gradient: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    """Approximate U V^T of matrices G = U S V^T, (..., m, n); the singular values end within 0.7..1.2, enough here."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = gradient.shape[-2] > gradient.shape[-1]
    x = gradient.mT if tall else gradient
    # bf16, as in the original: the steps correct each other's rounding.
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(gradient.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; convolutions are taken as (out, in * kernel) matrices."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):  # the base class's signature has overloads
        for group in self.param_groups:
            # Matrices of one shape go through the iteration together: on two cores 0.10 s a step of Wan-mini's DiT
            # where one at a time takes 0.45 s.
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.flatten(1).shape].append(param)
            for shape, params in by_shape.items():
                updates = torch.stack([self._momentum(param, group["momentum"]).flatten(1) for param in params])
                # 0.2 sqrt(max dimension) gives Muon the update size of AdamW, so that both share one learning rate
                # (Liu et al. 2025, "Muon is scalable for LLM training").
                scale = 0.2 * math.sqrt(max(shape))
                for param, update in zip(params, orthogonalised(updates), strict=True):
                    param.add_(update.view_as(param), alpha=-group["lr"] * scale)

    def _momentum(self, param: torch.nn.Parameter, decay: float) -> torch.Tensor:
        """Nesterov's look-ahead of the running mean of gradients."""
        assert param.grad is not None
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        momentum = state["momentum"].mul_(decay).add_(param.grad)
        return param.grad + decay * momentum


class MuonAdamW:
    """Both optimizers behind one `step`, with linear warm-up and a decay to zero over `num_steps`."""

    def __init__(
        self, named_params: Iterable[tuple[str, torch.nn.Parameter]], *, lr: float, num_steps: int, warmup: int = 50
    ) -> None:
        matrices, rest = [], []
        for name, param in named_params:
            if not param.requires_grad:
                continue
            is_matrix = param.ndim >= 2 and min(param.shape[0], param[0].numel()) > 4
            # Embedding tables and modulations are no linear maps.
            is_table = "embedding.weight" in name or "modulation" in name
            (matrices if is_matrix and not is_table else rest).append(param)
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0))
        if matrices:
            self.parts.append(Muon(matrices, lr=lr))
        self.params = matrices + rest
        self.lr, self.num_steps, self.warmup = lr, num_steps, warmup

    def step(self, step: int, max_grad_norm: float = 1.0) -> float:
        """One update; returns the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.params, max_grad_norm)
        share = min(1.0, step / max(1, self.num_steps))
        factor = min(1.0, (step + 1) / self.warmup) * min(1.0, 0.02 + (1 - share) / 0.6)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.lr * factor
            part.step()
            part.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Ema:
    """Exponential mean of the parameters that train; early on it forgets faster, so that the start leaves no trace."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, param in module.named_parameters():
            if name in self.mean:
                self.mean[name].lerp_(param, 1 - decay)

    @torch.no_grad()
    def swap(self, module: torch.nn.Module) -> None:
        """Exchange the means with the live weights; a second call changes back."""
        for name, param in module.named_parameters():
            if name in self.mean:
                kept = param.detach().clone()
                param.copy_(self.mean[name])
                self.mean[name].copy_(kept)
