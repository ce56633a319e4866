"""Flow matching on Wan-mini: one training step from cached clips to a loss.

x_sigma = (1 - sigma) x_0 + sigma noise, the model predicts noise - x_0 (Lipman et al. 2023). Sigma is drawn as Wan
does, uniform over a grid that shift 5 bends towards noise, and stratified over the batch.

Shapes: B batch, C channels, T' latent frames, h and w latent pixels, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffsynth.models import wan_video_dit
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.pipelines.wan_video import model_fn_wan_video
from transformers import PreTrainedTokenizerBase

from sakuga.training.mini.latents import Clip
from sakuga.wan.conditioning import frame_mask
from sakuga.wan.forward import DitForward

FLOW_SHIFT = 5.0
NUM_TEXT_TOKENS = 512
"""What the pipeline always passes; training passes fewer, see `training_attention`."""
SHORT_TEXT_TOKENS = 72
PATCH_AREA = 4
"""Latent pixels of a token: 1 x 2 x 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Inputs of one step, on the device."""

    latents_BCThw: torch.Tensor
    y_BCThw: torch.Tensor
    weight_BThw: torch.Tensor
    token_ids_BL: torch.Tensor
    token_mask_BL: torch.Tensor


@contextmanager
def training_attention() -> Iterator[None]:
    """Exact attention with a backward, on short texts.

    The pipeline pads every text to 512 tokens with zeros, and attends to all of them. The padding rows are all alike,
    so a key that stands for n of them with log(n) added to its score gives the same softmax: 72 columns for 512,
    which saves a quarter of a step.
    """

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, **_: bool) -> torch.Tensor:
        # Under autocast the normed q and k are fp32 and v is bf16; the fused kernel would cast them too.
        heads = [x.to(v.dtype).unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v)]
        bias = None
        if k.shape[1] == SHORT_TEXT_TOKENS:
            bias = torch.zeros(SHORT_TEXT_TOKENS, dtype=v.dtype, device=q.device)
            bias[-1] = math.log(NUM_TEXT_TOKENS - SHORT_TEXT_TOKENS + 1)
        if q.device.type == "cpu":
            out = _plain_attention(*heads, bias)
        else:
            mask = None if bias is None else bias.expand(1, 1, q.shape[1], -1)
            out = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)

    def rope(x: torch.Tensor, freqs: torch.Tensor, num_heads: int) -> torch.Tensor:
        # fp32 instead of fp64: the angles are exact to 1e-7, and the gradient's bf16 is far coarser.
        pairs = torch.view_as_complex(x.float().unflatten(2, (num_heads, -1)).unflatten(3, (-1, 2)))
        return torch.view_as_real(pairs * freqs.to(torch.complex64)).flatten(2).to(x.dtype)

    with patch.object(wan_video_dit, "flash_attention", attend), patch.object(wan_video_dit, "rope_apply", rope):
        yield


def _plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention by two products: on a CPU in bf16 the fused kernel's backward takes 101 ms where this takes 28."""
    with torch.autocast(q.device.type, enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v


def make_batch(
    clips: list[Clip],
    tokenizer: PreTrainedTokenizerBase,
    rng: torch.Generator,
    device: torch.device,
    figure_weight: float,
) -> Batch:
    """Pick mode (text, first frame, both frames), length and sentence for clips of one geometry."""
    full = clips[0].video_CThw.shape[1]
    draw = torch.rand(1, generator=rng).item()
    # Short clips are cut off the front, which a causal VAE allows; a last frame belongs to the full clip only.
    length = full if draw < 0.85 else int(torch.randint(min(5, full), full + 1, (1,), generator=rng))
    latents, ys, weights, texts = [], [], [], []
    for clip in clips:
        height, width = clip.video_CThw.shape[2] * 8, clip.video_CThw.shape[3] * 8
        mode = torch.rand(1, generator=rng).item()
        known, first, last = clip.first_CThw, True, False
        if mode < 0.2:
            known, first = _grey_like(clip), False
        elif clip.both_CThw is not None and mode < 0.7 and length == full:
            known, last = clip.both_CThw, True
        mask = frame_mask(4 * length - 3, height, width, first=first, last=last)
        ys.append(torch.cat([mask, known[:, :length].float()]))
        latents.append(clip.video_CThw[:, :length].float())
        weights.append(1 + figure_weight * clip.figure_Thw[:length].float())
        phrase = int(torch.randint(len(clip.prompts), (1,), generator=rng))
        texts.append("" if torch.rand(1, generator=rng).item() < 0.1 else clip.prompts[phrase])
    tokens = tokenizer(
        texts, return_tensors="pt", padding="max_length", truncation=True, max_length=SHORT_TEXT_TOKENS - 1
    )
    return Batch(
        latents_BCThw=torch.stack(latents).to(device),
        y_BCThw=torch.stack(ys).to(device),
        weight_BThw=torch.stack(weights).to(device),
        token_ids_BL=tokens.input_ids.to(device),
        token_mask_BL=tokens.attention_mask.to(device),
    )


GREY: dict[tuple[int, ...], torch.Tensor] = {}
"""Encoded grey video by latent shape; set once by the trainer, since it needs the VAE."""


def _grey_like(clip: Clip) -> torch.Tensor:
    return GREY[tuple(clip.video_CThw.shape)]


def encode_text(text_encoder: WanTextEncoder, batch: Batch) -> torch.Tensor:
    """Context (B, 72, D): tokens, zeros where the text has ended, and one more zero row for all further padding."""
    context = text_encoder(batch.token_ids_BL, batch.token_mask_BL)
    context = context * batch.token_mask_BL[..., None]
    return F.pad(context, (0, 0, 0, 1))


def flow_loss(
    dit: WanModel, context_BLD: torch.Tensor, batch: Batch, rng: torch.Generator, token_share: float = 1.0
) -> torch.Tensor:
    """Mean squared error of the velocity in fp32, heavier where the dancer is; on `token_share` of the tokens."""
    num = batch.latents_BCThw.shape[0]
    device = batch.latents_BCThw.device
    strata = (torch.randperm(num, generator=rng) + torch.rand(num, generator=rng)) / num
    sigma_B = (FLOW_SHIFT * strata / (1 + (FLOW_SHIFT - 1) * strata)).to(device)
    noise = torch.randn(batch.latents_BCThw.shape, generator=rng).to(device)
    s = sigma_B.view(-1, 1, 1, 1, 1)
    noisy = (1 - s) * batch.latents_BCThw + s * noise
    target, weight = noise - batch.latents_BCThw, batch.weight_BThw
    if token_share < 1:
        kept_BK = draw_tokens(weight.cpu(), token_share, rng).to(device)
        velocity = masked_velocity(dit, noisy, 1000 * sigma_B, context_BLD, batch.y_BCThw, kept_BK)
        error = (velocity.float() - _patches(target, kept_BK)).unflatten(2, (PATCH_AREA, -1)).square().mean(3)
        weight = _patches(weight[:, None], kept_BK)
    else:
        velocity = model_fn_wan_video(dit, latents=noisy, timestep=1000 * sigma_B, context=context_BLD, y=batch.y_BCThw)
        error = (velocity.float() - target).square().mean(1)
    return (error * weight).sum() / weight.sum()


def draw_tokens(weight_BThw: torch.Tensor, share: float, rng: torch.Generator) -> torch.Tensor:
    """Indices (B, K) of the tokens that a step computes: the dancer's places first, then random background.

    A place is kept in all frames or in none, so that a token always finds its own past and future. Three quarters of
    a clip's tokens hold a still background that is learned within minutes; leaving half of the tokens out more than
    halves a step. The last stretch of a run sees all of them (Zheng et al. 2023, "Fast training of diffusion models
    with masked transformers").
    """
    num_frames, size = weight_BThw.shape[1], weight_BThw[0, 0].numel() // PATCH_AREA
    dancer = F.avg_pool2d(weight_BThw, 2).amax(1).flatten(1) > 1.02
    order = dancer.float() + torch.rand(dancer.shape, generator=rng)
    place_BK = order.topk(max(1, round(share * size)), dim=1).indices.sort(dim=1).values
    return (torch.arange(num_frames)[None, :, None] * size + place_BK[:, None]).flatten(1)


def masked_velocity(
    dit: WanModel,
    noisy_BCThw: torch.Tensor,
    timestep_B: torch.Tensor,
    context_BLD: torch.Tensor,
    y_BCThw: torch.Tensor,
    kept_BK: torch.Tensor,
) -> torch.Tensor:
    """What the head gives for the kept tokens (B, K, 4 * C); the others never enter a block."""
    tokens = DitForward(dit).embed(noisy_BCThw, timestep_B, y_BCTHW=y_BCThw)
    x = _gather(tokens.x_BSD, kept_BK)
    freqs = torch.view_as_complex(tokens.rotation_S1D2)[kept_BK]
    context = dit.text_embedding(context_BLD)
    for block in dit.blocks:
        x = block(x, context, tokens.modulation_BR6D.squeeze(1), freqs)
    return dit.head(x, tokens.time_BRD.squeeze(1))


def _patches(x_BCThw: torch.Tensor, kept_BK: torch.Tensor) -> torch.Tensor:
    """Kept patches (B, K, 4 * C), each in the order of the head's output: row, column, channel."""
    rows = x_BCThw.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # B C T h/2 2 w/2 2
    return _gather(rows.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(1, 3), kept_BK)


def _gather(x_BSD: torch.Tensor, kept_BK: torch.Tensor) -> torch.Tensor:
    return x_BSD.gather(1, kept_BK[..., None].expand(-1, -1, x_BSD.shape[2]))
