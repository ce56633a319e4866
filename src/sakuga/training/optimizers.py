"""Optimizers by name, warm-up and decay, and an exponential mean of the weights.

AdamW (Loshchilov and Hutter 2019) in fp32; the same with its two states in 8 bits by torchao (Dettmers et al. 2022),
which saves 6 bytes a parameter; Muon for matrices with AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix and replaces it by
the nearest orthogonal matrix, found by five Newton-Schulz steps. At this scale it needs about half of AdamW's steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch

from sakuga.errors import TrainError


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
        self,
        named_params: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        lr: float,
        num_steps: int,
        warmup: int = 50,
        weight_decay: float = 0.0,
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
            self.parts.append(torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay))
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


def build_optimizers(
    named: Mapping[str, torch.nn.Parameter], name: str, *, lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """`name` is one of config.OPTIMIZERS, `named` all that train. Raises TrainError for adamw8bit without torchao."""
    parameters = list(named.values())
    if name == "adamw":
        return [torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)]
    if name == "adamw8bit":
        try:
            from torchao.optim import AdamW8bit
        except ImportError as error:
            raise TrainError("adamw8bit needs the package torchao; pip install 'sakuga[quant]', or adamw") from error
        return [AdamW8bit(parameters, lr=lr, weight_decay=weight_decay)]
    return MuonAdamW(named.items(), lr=lr, num_steps=1, weight_decay=weight_decay).parts


def lr_factor(step: int, *, schedule: str, num_steps: int, warmup_steps: int) -> float:
    """What the rate is multiplied with in a step: linear warm-up, then a cosine to a hundredth, or constant.

    >>> [round(lr_factor(s, schedule="cosine", num_steps=10, warmup_steps=2), 2) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.51, 0.05]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    share = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


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

    @torch.no_grad()
    def reset(self, module: torch.nn.Module) -> None:
        """Begin anew from the live weights: those of a checkpoint's mean, before its own weights are loaded."""
        for name, param in module.named_parameters():
            if name in self.mean:
                self.mean[name].copy_(param)
