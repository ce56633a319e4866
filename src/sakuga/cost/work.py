"""How much there is to compute in a render: floating-point operations of its stages, from shapes alone.

A multiplication and an addition are two operations. Norms, rotations and activations are left out: they take time on
every device, which is why fitted efficiencies stand below what a plain matrix product reaches.

Pure arithmetic, no torch.     Run: pytest tests/unit/test_cost_counts.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sakuga.wan.shapes import CLIP_PARAMS, CLIP_TOKENS, PATCH, VACE_IN_DIM, TextEncoderShape, VaeShape

if TYPE_CHECKING:
    from sakuga.recipe import RenderRecipe, Tiling
    from sakuga.wan.cards import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations by kind, because a device does not reach the same speed in all of them."""

    linear_flops: float = 0.0
    attention_flops: float = 0.0
    conv_flops: float = 0.0

    @property
    def flops(self) -> float:
        return self.linear_flops + self.attention_flops + self.conv_flops

    def __add__(self, other: Work) -> Work:
        return Work(
            linear_flops=self.linear_flops + other.linear_flops,
            attention_flops=self.attention_flops + other.attention_flops,
            conv_flops=self.conv_flops + other.conv_flops,
        )

    def __mul__(self, factor: float) -> Work:
        return Work(
            linear_flops=self.linear_flops * factor,
            attention_flops=self.attention_flops * factor,
            conv_flops=self.conv_flops * factor,
        )


def has_reference(recipe: RenderRecipe, card: ModelCard) -> bool:
    """A reference image is one more latent frame, for Fun 1.1 and for VACE."""
    return card.takes_reference and any(ref.role == "reference_image" for ref in recipe.images)


def has_vace(recipe: RenderRecipe, card: ModelCard) -> bool:
    """Whether the VACE branch has anything to say; without an input it is not run."""
    given = {ref.role for ref in (*recipe.images, *recipe.videos)}
    return card.dit.num_vace_layers > 0 and bool(given & {"vace_video", "vace_mask", "reference_image"})


def has_clean_frame(recipe: RenderRecipe, card: ModelCard) -> bool:
    return card.dit.has_clean_frame and any(ref.role == "input_image" for ref in recipe.images)


def num_tokens(recipe: RenderRecipe, card: ModelCard) -> int:
    """Video tokens that the blocks of the DiT see."""
    _, _, frames, rows, columns = card.latent_shape(recipe.width, recipe.height, recipe.num_frames)
    return (frames + has_reference(recipe, card)) * (rows // 2) * (columns // 2)


def evaluation_work(card: ModelCard, *, tokens: int, text_tokens: int, vace: bool = False) -> tuple[Work, Work]:
    """One run of the DiT for one prompt: embedding and head, and all blocks."""
    dit = card.dit
    latent_dim = card.in_dim * PATCH
    rest = 2 * tokens * dit.dim * (latent_dim + dit.out_dim * PATCH)
    rest += 2 * tokens * dit.camera_linear_params
    rest += 2 * (dit.freq_dim * dit.dim + 7 * dit.dim**2)  # the time
    num_blocks = dit.num_layers
    extra = 0.0
    if vace:
        num_blocks += dit.num_vace_layers
        extra = 2 * tokens * dit.dim * (dit.dim * (dit.num_vace_layers + 1) + VACE_IN_DIM * PATCH)
    seen = text_tokens + dit.num_image_tokens
    of_video = 2 * tokens * (6 * dit.dim**2 + 2 * dit.dim * dit.ffn_dim)
    of_text = 2 * seen * 2 * dit.dim**2
    attention = 4 * tokens * (tokens + seen) * dit.dim
    blocks = Work(linear_flops=num_blocks * (of_video + of_text) + extra, attention_flops=num_blocks * attention)
    return Work(linear_flops=rest), blocks


def num_evaluations(recipe: RenderRecipe, card: ModelCard) -> tuple[int, int]:
    """Denoise steps with one evaluation and with two: guidance 1 needs no negative prompt.

    >>> # 20 steps under guidance: (0, 20)
    """
    boundary = recipe.boundary_ratio if recipe.boundary_ratio is not None else card.boundary_ratio
    single = 0
    for index in range(recipe.num_inference_steps):
        linear = recipe.denoising_strength * (1 - index / recipe.num_inference_steps)
        sigma = recipe.flow_shift * linear / (1 + (recipe.flow_shift - 1) * linear)
        low_noise = card.two_experts and boundary is not None and sigma < boundary
        guidance = recipe.guidance_scale
        if low_noise and recipe.guidance_scale_2 is not None:
            guidance = recipe.guidance_scale_2
        single += guidance == 1
    return single, recipe.num_inference_steps - single


def text_work(shape: TextEncoderShape, tokens: int) -> Work:
    """One prompt; the padding behind it is encoded too."""
    return Work(
        linear_flops=2 * shape.num_layers * shape.block_linear_params * tokens,
        attention_flops=4 * shape.num_layers * tokens**2 * shape.dim,
    )


def encode_work(recipe: RenderRecipe, card: ModelCard, *, guided: bool) -> Work:
    """Prompts, pictures and videos: what is run before the first step."""
    images = {ref.role for ref in recipe.images}
    work = text_work(card.text_encoder, card.tokenizer_max_tokens) * (2 if guided else 1)
    if card.needs_clip:
        num_pictures = max(1, len(images & {"input_image", "end_image"}))
        work += Work(linear_flops=2 * CLIP_PARAMS * CLIP_TOKENS * num_pictures)
    size = recipe.width, recipe.height
    for frames in encoded_videos(recipe, card):
        work += vae_work(card, "encode", *size, frames, recipe.tiling)
    return work


def encoded_videos(recipe: RenderRecipe, card: ModelCard) -> list[int]:
    """Frames of each video that the VAE encodes; a picture is one of one frame."""
    images = {ref.role for ref in recipe.images}
    videos = {ref.role for ref in recipe.videos}
    whole = len(videos & {"input_video", "control_video"})
    if card.in_dim > 2 * card.z_dim:
        whole += 1  # the picture with grey behind it, which fills the channels beside the latents
    if has_vace(recipe, card):
        whole += 2  # what stays and what is redrawn
    pictures = has_reference(recipe, card) + card.dit.has_camera
    pictures += card.dit.has_clean_frame and "input_image" in images
    return [recipe.num_frames] * whole + [1] * pictures


def vae_work(
    card: ModelCard, direction: str, width: int, height: int, num_frames: int, tiling: Tiling | None = None
) -> Work:
    """Encode or decode a video; tiles overlap, so they are more work than the whole."""
    vae: VaeShape = card.vae
    first, four_more = vae.decode_flops if direction == "decode" else vae.encode_flops
    dim = vae.decode_attention_dim if direction == "decode" else vae.encode_attention_dim
    num_latents = (num_frames - 1) // 4 + 1
    work = Work()
    for tile_width, tile_height in tiles(card, width, height, tiling):
        latent_pixels = tile_width * tile_height / card.spatial_factor**2
        work += Work(
            conv_flops=tile_width * tile_height * (first + four_more * (num_latents - 1)),
            attention_flops=4 * num_latents * latent_pixels**2 * dim,
        )
    return work


def tiles(card: ModelCard, width: int, height: int, tiling: Tiling | None) -> list[tuple[int, int]]:
    """Width and height of each tile in pixels, as DiffSynth lays them; without tiling the one whole picture."""
    if tiling is None:
        return [(width, height)]
    across = _spans(width // card.spatial_factor, tiling.tile_width, tiling.stride_width)
    down = _spans(height // card.spatial_factor, tiling.tile_height, tiling.stride_height)
    return [(w * card.spatial_factor, h * card.spatial_factor) for h in down for w in across]


def _spans(length: int, tile: int, stride: int) -> list[int]:
    """Lengths of the tiles along one side, the last one cut off at the border.

    >>> _spans(104, 52, 26), _spans(40, 52, 26)
    ([52, 52, 52], [40])
    """
    return [
        min(start + tile, length) - start
        for start in range(0, length, stride)
        if start < stride or start - stride + tile < length
    ]
