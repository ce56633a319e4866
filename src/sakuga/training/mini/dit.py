"""Train Wan-mini's DiT with its text encoder on the live world, then the fairy LoRA on top of both, frozen."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from sakuga.training.mini import flow
from sakuga.training.mini.latents import Clip, load_clips
from sakuga.training.mini.run import Run, pick_device, step_generator
from sakuga.training.mini.run import device_name as run_device
from sakuga.training.optimizers import Ema, MuonAdamW
from sakuga.wan.mini.models import MiniConfig, MiniVideoVAE

log = logging.getLogger(__name__)

LORA_TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")


@dataclass(frozen=True, slots=True, kw_only=True)
class DitPreset:
    """Settings of a DiT or LoRA run."""

    num_clips: int
    num_steps: int
    tokens_per_batch: int
    """Longer and larger clips come in smaller batches; a default clip has 576 tokens."""
    lr: float
    ema_decay: float
    figure_weight: float = 2.0
    token_share: float = 1.0
    """Share of the tokens that a step computes, but for the last `full_share` of the run: `flow.draw_tokens`."""
    full_share: float = 0.25
    lora_rank: int = 16
    seed: int = 0

    def token_share_at(self, step: int) -> float:
        return self.token_share if step < (1 - self.full_share) * self.num_steps else 1.0


BASE_PRESETS = {
    "cpu": DitPreset(
        num_clips=1500,
        num_steps=4400,
        tokens_per_batch=16 * 576,
        lr=2e-3,
        ema_decay=0.998,
        token_share=0.5,
        full_share=0.12,
    ),
    "gpu": DitPreset(num_clips=12000, num_steps=30000, tokens_per_batch=64 * 576, lr=2e-3, ema_decay=0.9995),
}
FAIRY_PRESETS = {
    "cpu": DitPreset(num_clips=288, num_steps=500, tokens_per_batch=8 * 576, lr=2e-3, ema_decay=0.99),
    "gpu": DitPreset(num_clips=8000, num_steps=6000, tokens_per_batch=64 * 576, lr=1e-3, ema_decay=0.999),
}


class DitTrainer(torch.nn.Module):
    """DiT and text encoder, as they are saved together."""

    def __init__(self, dit: WanModel, text_encoder: WanTextEncoder) -> None:
        super().__init__()
        self.dit, self.text_encoder = dit, text_encoder

    def forward(self, batch: flow.Batch, rng: torch.Generator, token_share: float = 1.0) -> torch.Tensor:
        return flow.flow_loss(self.dit, flow.encode_text(self.text_encoder, batch), batch, rng, token_share)


class Buckets:
    """Clips by geometry; a batch has one geometry, drawn by its number of clips."""

    def __init__(self, clips: list[Clip], tokens_per_batch: int) -> None:
        self.tokens_per_batch = tokens_per_batch
        by_shape: dict[tuple[int, ...], list[Clip]] = defaultdict(list)
        for clip in clips:
            by_shape[tuple(clip.video_CThw.shape)].append(clip)
        self.groups = list(by_shape.values())

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(group[0].video_CThw.shape) for group in self.groups]

    def draw(self, rng: torch.Generator) -> list[Clip]:
        sizes = torch.tensor([float(len(group)) for group in self.groups])
        group = self.groups[int(torch.multinomial(sizes, 1, generator=rng))]
        _, t, h, w = group[0].video_CThw.shape
        num = max(1, self.tokens_per_batch // (t * h * w // 4))
        return [group[int(i)] for i in torch.randint(len(group), (num,), generator=rng)]


@torch.no_grad()
def _encode_grey(vae: MiniVideoVAE, shapes: list[tuple[int, ...]], device: torch.device) -> None:
    for shape in shapes:
        _, t, h, w = shape
        grey = torch.zeros(1, 3, 4 * t - 3, 8 * h, 8 * w, device=device)
        flow.GREY[shape] = vae.to(device).model.encode(grey, vae.scale)[0].float().cpu()


def load_part(module: torch.nn.Module, path: Path) -> None:
    """Load fp16 weights into an fp32 module."""
    module.load_state_dict({k: v.float() for k, v in load_file(path).items()})


def train_dit(
    run_folder: Path,
    clips_folder: Path,
    weights: Path,
    preset: DitPreset,
    *,
    lora: bool,
    warm_start: bool = False,
    device_name: str = "auto",
) -> DitTrainer:
    """Train the base (`lora=False`) or a LoRA on the weights in `weights`; returns averaged weights.

    `warm_start` begins a new run of the base from `weights`, where the checkpoint of the last run is lost.
    """
    device = pick_device(device_name)
    torch.manual_seed(preset.seed)
    config = MiniConfig()
    vae = config.build_vae()
    load_part(vae, weights / "vae.safetensors")
    buckets = Buckets(load_clips(clips_folder), preset.tokens_per_batch)
    _encode_grey(vae, buckets.shapes, device)
    trainer = DitTrainer(config.build_dit(), config.build_text_encoder())
    if lora or warm_start:
        load_part(trainer.dit, weights / "dit.safetensors")
        load_part(trainer.text_encoder, weights / "text_encoder.safetensors")
    if lora:
        _add_lora(trainer, preset.lora_rank)
    elif not warm_start:
        # A head that starts at zero predicts no velocity instead of a random one, as in Wan's own initialisation.
        torch.nn.init.zeros_(trainer.dit.head.head.weight)
        torch.nn.init.zeros_(trainer.dit.head.head.bias)
    trainer.to(device)
    trainer.dit.freqs = tuple(f.to(device) for f in trainer.dit.freqs)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(weights / "tokenizer")
    optimizer = MuonAdamW(trainer.named_parameters(), lr=preset.lr, num_steps=preset.num_steps)
    run = Run(run_folder, trainer, optimizer, Ema(trainer, preset.ema_decay), preset.num_steps)
    run.resume({"device": run_device(device), "settings": asdict(preset)})
    with flow.training_attention():
        while run.step < preset.num_steps:
            rng = step_generator(preset.seed, run.step)
            batch = flow.make_batch(buckets.draw(rng), tokenizer, rng, device, preset.figure_weight)
            with torch.autocast(device.type, torch.bfloat16):
                loss = trainer(batch, rng, preset.token_share_at(run.step))
            loss.backward()
            norm = optimizer.step(run.step)
            run.ema.update(trainer, run.step)
            run.after_step({"loss": loss.item(), "grad": norm})
    run.ema.swap(trainer)
    return trainer


def _add_lora(trainer: DitTrainer, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    trainer.requires_grad_(False)
    # alpha = rank, scale 1: DiffSynth's file format has no place for another scale.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)), trainer.dit)


def save_lora(trainer: DitTrainer, path: Path, metadata: dict[str, str]) -> None:
    """Write the adapter in DiffSynth's key style, fp16: `blocks.N.self_attn.q.lora_A.default.weight`."""
    state = {k: v.detach().cpu().half().contiguous() for k, v in trainer.dit.state_dict().items() if "lora_" in k}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=metadata)
    path.chmod(0o644)
