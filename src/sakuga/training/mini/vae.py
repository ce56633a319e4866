"""Train Wan-mini's VAE on short clips of both worlds and of photographs, then measure its latents.

The encoder fixes what latents mean, and with it the cache, the DiT and every LoRA. The decoder alone can be trained on
afterwards at no such cost, on longer clips than the whole VAE can afford.

Loss: mean absolute and squared error of the reconstruction, and a little KL divergence that keeps the latents smooth.

Shapes: B batch, C channels, T frames, H height, W width; pixels in -1..1.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sakuga.synth import make_sample
from sakuga.synth.dataset import is_test_seed
from sakuga.training.mini.draw import drawn
from sakuga.training.mini.pictures import load_photos, panning_clip
from sakuga.training.mini.run import DECODER, Run, pick_device
from sakuga.training.mini.run import device_name as run_device
from sakuga.training.optimizers import Ema, MuonAdamW
from sakuga.wan.mini.models import MiniConfig, MiniVideoVAE

log = logging.getLogger(__name__)


class Phase(NamedTuple):
    """A stretch of the run: stills first, since they cost a fifth and teach all but time; then longer clips."""

    num_steps: int
    batch_size: int
    num_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VaePreset:
    """Settings of one VAE run."""

    phases: tuple[Phase, ...]
    crop: int
    lr: float
    pool_clips: int
    """Clips held in memory; one is replaced each step."""
    kl_weight: float = 1e-4
    photo_share: float = 0.1
    ema_decay: float = 0.998
    seed: int = 0

    @property
    def num_steps(self) -> int:
        return sum(phase.num_steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        for phase in self.phases:
            step -= phase.num_steps
            if step < 0:
                return phase
        return self.phases[-1]


VAE_PRESETS = {
    "cpu": VaePreset(phases=(Phase(500, 24, 1), Phase(250, 8, 5), Phase(750, 6, 9)), crop=64, lr=3e-3, pool_clips=200),
    "gpu": VaePreset(
        phases=(Phase(2000, 64, 1), Phase(3000, 32, 9), Phase(3000, 16, 17)), crop=128, lr=2e-3, pool_clips=800
    ),
}


DECODER_PRESETS = {
    "cpu": VaePreset(phases=(Phase(900, 4, 13),), crop=64, lr=1e-3, pool_clips=200),
    "gpu": VaePreset(phases=(Phase(4000, 16, 17),), crop=128, lr=1e-3, pool_clips=800),
}


class ClipPool:
    """Clips of dancers that are drawn once and cropped many times."""

    def __init__(self, preset: VaePreset, photos: list[np.ndarray], *, first: int = 0, num_workers: int = 0) -> None:
        self.preset, self.photos = preset, photos
        self.next = first
        seeds = (seed for seed in itertools.count(first) if not is_test_seed(seed))
        self._stream = drawn(_draw, seeds, num_workers)
        self.clips: list[np.ndarray] = []

    def refresh(self, num_new: int) -> None:
        for clip in itertools.islice(self._stream, num_new):
            if len(self.clips) < self.preset.pool_clips:
                self.clips.append(clip)
            else:
                self.clips[self.next % self.preset.pool_clips] = clip
            self.next += 1

    def batch(self, rng: np.random.Generator, phase: Phase) -> torch.Tensor:
        """A batch (B, 3, T, crop, crop) in -1..1."""
        size, num_frames = self.preset.crop, phase.num_frames
        rows = []
        for _ in range(phase.batch_size):
            if rng.random() < self.preset.photo_share:
                rows.append(panning_clip(self.photos, rng, num_frames, size))
                continue
            clip = self.clips[int(rng.integers(len(self.clips)))]
            t, y, x = (int(rng.integers(full - part + 1)) for full, part in
                       zip(clip.shape[:3], (num_frames, size, size), strict=True))  # fmt: skip
            rows.append(clip[t : t + num_frames, y : y + size, x : x + size])
        video = torch.from_numpy(np.stack(rows)).permute(0, 4, 1, 2, 3)
        return video.float() / 127.5 - 1


def _draw(seed: int) -> np.ndarray:
    return make_sample(seed, "fairy" if seed % 2 else "live").video_THWC


class VaeTrainer(torch.nn.Module):
    """Encode, sample, decode, compare; `decoder_only` keeps the encoder as it is."""

    def __init__(self, vae: MiniVideoVAE, kl_weight: float, *, decoder_only: bool = False) -> None:
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight
        self.vae.model.train()
        for name, param in self.vae.named_parameters():
            param.requires_grad_(not decoder_only or name.startswith(DECODER))
        self._log_var: torch.Tensor | None = None
        # VideoVAE38_.encode drops the variance; its 1x1 convolution still computes it.
        self.vae.model.conv1.register_forward_hook(self._keep_log_var)

    def _keep_log_var(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._log_var = output.chunk(2, dim=1)[1]

    def forward(self, video_BCTHW: torch.Tensor, noise: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        scale = [torch.zeros(self.vae.z_dim), torch.ones(self.vae.z_dim)]
        mean = self.vae.model.encode(video_BCTHW, scale).float()
        assert self._log_var is not None
        log_var = self._log_var.float().clamp(-12, 4)
        epsilon = torch.randn(mean.shape, generator=noise).to(mean.device)
        latents = mean + torch.exp(0.5 * log_var) * epsilon
        output = self.vae.model.decode(latents, scale).float()
        error = output - video_BCTHW
        squared = error.square().mean()
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        loss = error.abs().mean() + 4 * squared + self.kl_weight * kl
        return loss, {"loss": loss.item(), "mse": squared.item(), "kl": kl.item()}


def train_vae(
    folder: Path,
    preset: VaePreset,
    device_name: str = "auto",
    photos: Path | None = None,
    *,
    num_workers: int = 0,
    decoder_of: MiniVideoVAE | None = None,
) -> MiniVideoVAE:
    """Train (or go on training) and return the VAE with averaged weights and measured latent statistics.

    With `decoder_of` only the decoder of that VAE learns: its latents and their statistics stay as they are.
    """
    device = pick_device(device_name)
    torch.manual_seed(preset.seed)
    vae = decoder_of or MiniConfig().build_vae()
    trainer = VaeTrainer(vae, preset.kl_weight, decoder_only=decoder_of is not None).to(device)
    optimizer = MuonAdamW(trainer.named_parameters(), lr=preset.lr, num_steps=preset.num_steps)
    run = Run(folder, trainer, optimizer, Ema(trainer, preset.ema_decay), preset.num_steps)
    run.resume({"device": run_device(device), "settings": asdict(preset)})
    pool = ClipPool(preset, load_photos(photos), first=run.step, num_workers=num_workers)
    pool.refresh(preset.pool_clips)
    while run.step < preset.num_steps:
        rng = np.random.default_rng((preset.seed, run.step))
        noise = torch.Generator().manual_seed(run.step)
        with torch.autocast(device.type, torch.bfloat16):
            loss, figures = trainer(pool.batch(rng, preset.phase_at(run.step)).to(device), noise)
        loss.backward()
        figures["grad"] = optimizer.step(run.step)
        run.ema.update(trainer, run.step)
        run.after_step(figures)
        pool.refresh(1)
    run.ema.swap(trainer)
    vae.model.eval().requires_grad_(False)
    if decoder_of is None:
        measure_latents(vae, device)
    return vae


@torch.no_grad()
def measure_latents(vae: MiniVideoVAE, device: torch.device, num_clips: int = 32) -> None:
    """Set `mean` and `std` of the latents, per channel, from clips of both worlds."""
    vae.to(device)
    identity = [torch.zeros(vae.z_dim), torch.ones(vae.z_dim)]
    latents = []
    for seed in range(num_clips):
        video = torch.from_numpy(make_sample(seed, "fairy" if seed % 2 else "live").video_THWC)
        video_BCTHW = (video.permute(3, 0, 1, 2).float() / 127.5 - 1)[None].to(device)
        latents.append(vae.model.encode(video_BCTHW, identity).float().flatten(2)[0])
    values = torch.cat(latents, 1)
    vae.mean.copy_(values.mean(1))
    vae.std.copy_(values.std(1))
