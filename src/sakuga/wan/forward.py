"""The DiT's forward pass, block by block: what DiffSynth's `model_fn_wan_video` computes, without what it repeats.

Whoever speeds a render up must stand between the blocks: a step cache leaves them out, a parallel plan gives each rank
a part of the tokens, an offload plan loads them one at a time. So the walk over the blocks is ours, the modules and
their weights stay DiffSynth's. Left out on the way: prompts embedded anew in every step, attention to 512 text tokens
of which most are the same padding, rotations in complex128, VACE hints of all layers held at once.

Shapes: B batch, S video tokens, L text tokens, D width, R rows of modulation (1, or 2 where the first frame is clean).
Run: pytest tests/unit/test_forward.py
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional

from sakuga.wan.attention import Attention, products

if TYPE_CHECKING:
    from diffsynth.models.wan_video_dit import CrossAttention, DiTBlock, SelfAttention, WanModel
    from diffsynth.models.wan_video_vace import VaceWanAttentionBlock, VaceWanModel


Place = Callable[[torch.nn.Module], AbstractContextManager[None]]
"""Has the weights of a block at hand while it runs: `Offloader.block`."""


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _everywhere(_: torch.nn.Module) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the cross-attention of every block looks at; the same in every step of a render."""

    text_BLD: torch.Tensor
    image_BLD: torch.Tensor | None = None
    """CLIP's tokens, which have keys and values of their own."""
    text_bias_L: torch.Tensor | None = None
    """Added to the scores, where one padding token stands for many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A video between the patch embedding and the head."""

    x_BSD: torch.Tensor
    time_BRD: torch.Tensor
    modulation_BR6D: torch.Tensor
    row_S: torch.Tensor | None
    """Which of two rows of time and modulation a token takes; None where there is one for all."""
    rotation_S1D2: torch.Tensor
    """RoPE as cosine and sine, half a head wide."""
    grid: tuple[int, int, int]
    """Frames, rows and columns of tokens, reference frame included."""
    num_reference_tokens: int = 0
    """In front, no part of the video."""
    split: Callable[[torch.Tensor], torch.Tensor] = _identity
    """All tokens to those of this rank, which are all that `x_BSD`, `row_S` and `rotation_S1D2` hold."""
    gather: Callable[[torch.Tensor], torch.Tensor] = _identity
    """The way back."""

    def shared(
        self, split: Callable[[torch.Tensor], torch.Tensor], gather: Callable[[torch.Tensor], torch.Tensor]
    ) -> Tokens:
        """This rank's tokens of these; `split` and `gather` work on dimension 1."""
        row_S = None if self.row_S is None else split(self.row_S[None])[0]
        rotation_S1D2 = split(self.rotation_S1D2[None])[0]
        return dataclasses.replace(
            self, x_BSD=split(self.x_BSD), row_S=row_S, rotation_S1D2=rotation_S1D2, split=split, gather=gather
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attentions:
    """The two places of attention in a block."""

    among_tokens: Attention
    to_text: Attention


RunBlock = Callable[["DiTBlock", torch.Tensor, Tokens, Context, Attentions], torch.Tensor]
"""Hidden states of this rank's tokens (B, S, D) before and after a block."""


class DitForward:
    """A DiT, with the VACE branch that belongs to it, as embed, blocks and head.

    Stateless but for rotations that are kept by grid: one object serves all renders of a model.
    """

    def __init__(
        self,
        dit: WanModel,
        vace: VaceWanModel | None = None,
        *,
        place: Place = _everywhere,
        compiled: bool = False,
        call: RunBlock | None = None,
    ) -> None:
        """`compiled`: each block through `torch.compile`, which one graph serves, as all have the same shapes.
        `call` runs a block in another way than `run_block`, as training does.
        """
        self.dit, self.vace = dit, vace
        self._place = place
        self._run_block = call or (torch.compile(run_block) if compiled else run_block)
        self._rotations: dict[tuple[int, int, int], torch.Tensor] = {}

    @property
    def num_blocks(self) -> int:
        return len(self.dit.blocks)

    def context(self, prompt_BLD: torch.Tensor, clip_feature_BLD: torch.Tensor | None = None) -> Context:
        """Embed a prompt, once for a render.

        On a CPU the zero rows behind the text, all alike, become one with log(n) added to its scores: the same
        softmax. A GPU's kernels take no bias, and there the text is a hundredth of the work.
        """
        bias = None
        if prompt_BLD.device.type == "cpu":
            prompt_BLD, bias = _without_repeats(prompt_BLD)
        text, image = self.dit.text_embedding(prompt_BLD), None
        if clip_feature_BLD is not None and self.dit.require_clip_embedding:
            image, rest = self.dit.img_emb(clip_feature_BLD).tensor_split([NUM_CLIP_TOKENS], dim=1)
            # A last frame's tokens go with the text: so does DiffSynth, where the models' authors take both as images.
            text = torch.cat([rest, text], dim=1)
            bias = None if bias is None else functional.pad(bias, (rest.shape[1], 0))
        return Context(text_BLD=text, image_BLD=image, text_bias_L=bias)

    def embed(
        self,
        latents_BCTHW: torch.Tensor,
        timestep_B: torch.Tensor,
        *,
        y_BCTHW: torch.Tensor | None = None,
        reference_latents_BCTHW: torch.Tensor | None = None,
        control_camera_BCTHW: torch.Tensor | None = None,
        motion_modulation_B6D: torch.Tensor | None = None,
        clean_first_frame: bool = False,
    ) -> Tokens:
        """Latents and time to tokens; `timestep_B` in 0..1000, in the precision that the model should see."""
        from diffsynth.models.wan_video_dit import sinusoidal_embedding_1d

        dit = self.dit
        if y_BCTHW is not None and dit.require_vae_embedding:
            latents_BCTHW = torch.cat([latents_BCTHW, y_BCTHW], dim=1)
        x = dit.patchify(latents_BCTHW, control_camera_BCTHW)
        f, h, w = x.shape[2:]
        x = x.flatten(2).transpose(1, 2).contiguous()
        two_rows = dit.seperated_timestep and clean_first_frame
        if two_rows:
            timestep_B = torch.cat([torch.zeros_like(timestep_B), timestep_B])
        time = dit.time_embedding(sinusoidal_embedding_1d(dit.freq_dim, timestep_B))
        modulation = dit.time_projection(time).unflatten(1, (6, dit.dim))
        if motion_modulation_B6D is not None:
            modulation = modulation + motion_modulation_B6D
        time, modulation = (time[None], modulation[None]) if two_rows else (time.unsqueeze(1), modulation.unsqueeze(1))
        num_reference = 0
        if reference_latents_BCTHW is not None:
            reference = dit.ref_conv(reference_latents_BCTHW[:, :, 0]).flatten(2).transpose(1, 2)
            x = torch.cat([reference, x], dim=1)
            num_reference, f = reference.shape[1], f + 1
        row = (torch.arange(f * h * w, device=x.device) >= h * w).long() if two_rows else None
        return Tokens(
            x_BSD=x,
            time_BRD=time,
            modulation_BR6D=modulation,
            row_S=row,
            rotation_S1D2=self._rotation((f, h, w), x.device),
            grid=(f, h, w),
            num_reference_tokens=num_reference,
        )

    def blocks(
        self,
        tokens: Tokens,
        context: Context,
        kernel: Attention,
        *,
        vace_context_BCTHW: torch.Tensor | None = None,
        vace_scale: float = 1.0,
    ) -> torch.Tensor:
        """All blocks: tokens in, hidden states (B, S, D) out."""
        *_, x = self.walk(tokens, context, kernel, vace_context_BCTHW=vace_context_BCTHW, vace_scale=vace_scale)
        return x

    def walk(
        self,
        tokens: Tokens,
        context: Context,
        kernel: Attention,
        *,
        among_tokens: Attention | None = None,
        vace_context_BCTHW: torch.Tensor | None = None,
        vace_scale: float = 1.0,
    ) -> Iterator[torch.Tensor]:
        """Hidden states after each block; whoever has seen enough stops asking.

        `among_tokens` is the self-attention where it is not `kernel`, as for tokens that are split over ranks; the
        text is whole on every rank.
        """
        attend = Attentions(among_tokens=among_tokens or kernel, to_text=kernel)
        hints: Iterator[torch.Tensor] = iter(())
        hinted: Container[int] = ()
        if vace_context_BCTHW is not None:
            assert self.vace is not None, "only a model with a VACE branch is given a VACE context"
            hints, hinted = self._hints(self.vace, vace_context_BCTHW, tokens, context, attend), self.vace.vace_layers
        x = tokens.x_BSD
        for index, block in enumerate(cast("Sequence[DiTBlock]", self.dit.blocks)):
            with self._place(block):
                x = self._run_block(block, x, tokens, context, attend)
            if index in hinted:
                x = x + next(hints) * vace_scale
            yield x

    def _hints(
        self, vace: VaceWanModel, vace_context_BCTHW: torch.Tensor, tokens: Tokens, context: Context, attend: Attentions
    ) -> Iterator[torch.Tensor]:
        """VACE's contribution to each of its layers, made when the layer comes."""
        c = tokens.split(vace.vace_patch_embedding(vace_context_BCTHW).flatten(2).transpose(1, 2))
        for block in cast("Sequence[VaceWanAttentionBlock]", vace.vace_blocks):
            with self._place(block):
                if block.block_id == 0:
                    c = block.before_proj(c) + tokens.x_BSD
                c = self._run_block(block, c, tokens, context, attend)
                hint = block.after_proj(c)
            yield hint

    def head(self, tokens: Tokens, x_BSD: torch.Tensor) -> torch.Tensor:
        """Hidden states to the velocity, (B, C, T, H, W)."""
        x = tokens.gather(self.patches(tokens, x_BSD))
        f, h, w = tokens.grid
        num_frames = f - tokens.num_reference_tokens // (h * w)
        grid = cast("torch.Tensor", (num_frames, h, w))  # as it is annotated; three numbers are what it takes
        return self.dit.unpatchify(x[:, tokens.num_reference_tokens :], grid)

    def patches(self, tokens: Tokens, x_BSD: torch.Tensor) -> torch.Tensor:
        """The velocity of this rank's tokens, (B, S, 4 * C); of a token's numbers rows come first, channels last."""
        head = self.dit.head
        modulation_BR2D = head.modulation.to(x_BSD.dtype) + tokens.time_BRD.unsqueeze(2)
        shift, scale = (_per_token(part, tokens.row_S) for part in modulation_BR2D.unbind(2))
        return head.head(head.norm(x_BSD) * (1 + scale) + shift)

    def _rotation(self, grid: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        known = self._rotations.get(grid)
        if known is None or known.device != device:
            f, h, w = grid
            frames, rows, columns = self.dit.freqs
            axes = (frames[:f, None, None], rows[None, :h, None], columns[None, None, :w])
            known = torch.cat([axis.expand(f, h, w, -1) for axis in axes], dim=-1).flatten(0, 2).unsqueeze(1)
            # Angles made in fp64, stored in fp32: exact to 6e-8, where bf16 hidden states are to 4e-3.
            known = torch.view_as_real(known.to(device=device, dtype=torch.complex64))
            if len(self._rotations) >= MAX_ROTATIONS:
                self._rotations.pop(next(iter(self._rotations)))
            self._rotations[grid] = known
        return known


NUM_CLIP_TOKENS = 257
"""Of one picture: 16x16 patches and one for the whole."""
MAX_ROTATIONS = 8
"""Grids kept; one of 720p and 81 frames is 39 MB."""


def rotate(x_BSD: torch.Tensor, rotation_S1D2: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rotary position embedding: neighbouring numbers of a head are a complex number each (Su et al. 2021)."""
    if torch.compiler.is_compiling():  # whose generated kernels know no complex numbers
        even, odd = x_BSD.float().unflatten(2, (num_heads, -1, 2)).unbind(-1)
        cos, sin = rotation_S1D2.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return turned.flatten(2).to(x_BSD.dtype)
    pairs = torch.view_as_complex(x_BSD.float().unflatten(2, (num_heads, -1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rotation_S1D2)).flatten(2).to(x_BSD.dtype)


def run_block(block: DiTBlock, x: torch.Tensor, tokens: Tokens, context: Context, attend: Attentions) -> torch.Tensor:
    """`DiTBlock.forward`: self-attention and feed-forward under adaptive norms, cross-attention between them."""
    modulation = block.modulation.to(tokens.modulation_BR6D.dtype) + tokens.modulation_BR6D
    parts = [_per_token(part, tokens.row_S) for part in modulation.unbind(2)]
    shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = parts
    normed = block.norm1(x) * (1 + scale_attn) + shift_attn
    x = x + gate_attn * _self_attention(block.self_attn, normed, tokens.rotation_S1D2, attend.among_tokens)
    x = x + _cross_attention(block.cross_attn, block.norm3(x), context, attend.to_text)
    normed = block.norm2(x) * (1 + scale_ffn) + shift_ffn
    return x + gate_ffn * block.ffn(normed)


def _per_token(part_BRD: torch.Tensor, row_S: torch.Tensor | None) -> torch.Tensor:
    """One row broadcasts; of two, each token takes its own, expanded only where it is used."""
    return part_BRD if row_S is None else part_BRD.index_select(1, row_S)


def _self_attention(
    module: SelfAttention, x: torch.Tensor, rotation_S1D2: torch.Tensor, attend: Attention
) -> torch.Tensor:
    q = rotate(module.norm_q(module.q(x)), rotation_S1D2, module.num_heads)
    k = rotate(module.norm_k(module.k(x)), rotation_S1D2, module.num_heads)
    return module.o(attend(q, k, module.v(x), module.num_heads))


def _cross_attention(module: CrossAttention, x: torch.Tensor, context: Context, attend: Attention) -> torch.Tensor:
    q = module.norm_q(module.q(x))
    k, v = module.norm_k(module.k(context.text_BLD)), module.v(context.text_BLD)
    if context.text_bias_L is None:
        out = attend(q, k, v, module.num_heads)
    else:
        out = _biased_attention(q, k, v, module.num_heads, context.text_bias_L)
    if context.image_BLD is not None:
        k, v = module.norm_k_img(module.k_img(context.image_BLD)), module.v_img(context.image_BLD)
        out = out + attend(q, k, v, module.num_heads)
    return module.o(out)


def _biased_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, bias_L: torch.Tensor
) -> torch.Tensor:
    if torch.is_grad_enabled():
        return products(q, k, v, num_heads, bias_L)
    q, k, v = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = bias_L.to(q.dtype).expand(1, 1, q.shape[2], -1)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _without_repeats(prompt_BLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The longest text and one of the zero rows behind all, with the bias that makes it count for the others."""
    length = prompt_BLD.shape[1]
    used = prompt_BLD.any(dim=2).any(dim=0).nonzero()
    num_used = int(used.max()) + 1 if len(used) else 0
    num_repeats = length - num_used
    if num_repeats < 2:
        return prompt_BLD, None
    bias = torch.zeros(num_used + 1, device=prompt_BLD.device)
    bias[-1] = math.log(num_repeats)
    return prompt_BLD[:, : num_used + 1], bias
