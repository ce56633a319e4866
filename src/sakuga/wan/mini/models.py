"""Wan-mini's parts: DiffSynth's own classes at small widths, and the small VAE that DiffSynth has no arguments for.

Knows nothing of training. DiffSynth finds `MiniVideoVAE` by its dotted path in `MODEL_CONFIGS`.

Shapes: B batch, C channels, T frames, H height, W width.      Run: pytest tests/unit/test_mini.py
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vae import VideoVAE38_, WanVideoVAE


@dataclass(frozen=True, slots=True, kw_only=True)
class DitConfig:
    """Arguments of `WanModel`: 5.3 M parameters, Wan 2.2 image conditioning (36 channels in, no CLIP)."""

    dim: int = 192
    in_dim: int = 36
    """16 of the latents, 4 of the frame mask, 16 of the encoded frames."""
    ffn_dim: int = 768
    out_dim: int = 16
    text_dim: int = 192
    freq_dim: int = 256
    eps: float = 1e-6
    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_heads: int = 4
    """Heads of 48: a head must split for the 3D RoPE; 48, 96 and 128 do, 64 does not."""
    num_layers: int = 8
    has_image_input: bool = False
    require_clip_embedding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """Arguments of `MiniVideoVAE`: 2.7 M parameters, 4 x 8 x 8 compression, first level at half resolution."""

    dim: int = 32
    dec_dim: int = 32
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 2)
    temperal_downsample: tuple[bool, ...] = (True, True)
    num_res_blocks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderConfig:
    """Arguments of `WanTextEncoder`: a T5 of two layers."""

    vocab: int = 1024
    dim: int = 192
    dim_attn: int = 192
    dim_ffn: int = 384
    num_heads: int = 4
    num_layers: int = 2
    num_buckets: int = 32
    shared_pos: bool = False
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniConfig:
    """Widths of the three networks."""

    dit: DitConfig = field(default_factory=DitConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)

    def build_dit(self) -> WanModel:
        return WanModel(**asdict(self.dit))

    def build_vae(self) -> MiniVideoVAE:
        return MiniVideoVAE(**asdict(self.vae))

    def build_text_encoder(self) -> WanTextEncoder:
        return WanTextEncoder(**asdict(self.text_encoder))


class MiniVideoVAE(WanVideoVAE):
    """Wan's causal video VAE at small widths, with the latent mean and deviation measured on its own data.

    `WanVideoVAE` hard-codes both, and takes no widths. Here they are buffers, so that they travel with the weights.
    """

    def __init__(
        self,
        dim: int = 32,
        dec_dim: int = 32,
        z_dim: int = 16,
        dim_mult: tuple[int, ...] = (1, 2, 2),
        temperal_downsample: tuple[bool, ...] = (True, True),
        num_res_blocks: int = 1,
    ) -> None:
        super(WanVideoVAE, self).__init__()
        self.register_buffer("mean", torch.zeros(z_dim))
        self.register_buffer("std", torch.ones(z_dim))
        self.model = VideoVAE38_(
            dim=dim,
            dec_dim=dec_dim,
            z_dim=z_dim,
            dim_mult=list(dim_mult),
            temperal_downsample=list(temperal_downsample),
            num_res_blocks=num_res_blocks,
        )
        self.model.eval().requires_grad_(False)
        self.upsampling_factor = 8
        self.z_dim = z_dim

    @property
    def scale(self) -> list[torch.Tensor]:
        """What `VideoVAE38_` takes: the mean and the reciprocal deviation of a latent channel."""
        return [self.mean, 1.0 / self.std]
