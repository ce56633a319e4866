"""Shapes of the networks that a card consists of: widths, depths, parameters, and what a pixel costs in the VAE.

Arithmetic for the cost model, without torch: a parameter count or a FLOP of a 14B model is known before anything is
loaded. Every number is held against DiffSynth's own classes.     Run: pytest tests/unit/test_cards.py
"""

from dataclasses import dataclass

PATCH = 4
"""Latent pixels of a token: 1 frame, 2 rows, 2 columns; the same in every Wan DiT."""
CLIP_TOKENS = 257
"""Of one picture; with a position embedding, as FLF2V has, the DiT takes two pictures."""
CLIP_DIM = 1280
CLIP_PARAMS = 632_076_801
"""The image half of xlm-roberta-large-vit-huge-14."""
VACE_IN_DIM = 96
CAMERA_DIM = 24 * 64
"""Of a camera's path, per latent pixel: six numbers of a ray in four frames, for 8 x 8 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DitShape:
    """A Wan DiT and the VACE branch that belongs to it."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    num_vace_layers: int = 0
    """Blocks of the VACE branch, each as large as one of the DiT's."""
    text_dim: int = 4096
    freq_dim: int = 256
    out_dim: int = 16
    num_image_tokens: int = 0
    """CLIP tokens that the blocks attend to beside the text."""
    has_reference: bool = False
    """A convolution embeds a reference frame (Fun 1.1)."""
    has_camera: bool = False
    """An adapter embeds a camera's path: a patch convolution and two of 3 x 3."""
    has_clean_frame: bool = False
    """A given first frame has a time of its own, so every token takes its own row of modulation (Wan2.2 TI2V)."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def block_linear_params(self) -> int:
        """Weights of the linear layers of one block, without biases: what quantization stores in a byte each."""
        projections = 8 + (2 if self.num_image_tokens else 0)
        return projections * self.dim**2 + 2 * self.dim * self.ffn_dim

    @property
    def block_linear_rows(self) -> int:
        """Outputs of the linear layers of one block: a quantized weight has a scale for each, and each has a bias."""
        projections = 8 + (2 if self.num_image_tokens else 0)
        return (projections + 1) * self.dim + self.ffn_dim

    @property
    def block_params(self) -> int:
        norms = 4 + (1 if self.num_image_tokens else 0) + 2  # RMS norms of q and k, and norm3's weight and bias
        return self.block_linear_params + self.block_linear_rows + (norms + 6) * self.dim

    @property
    def camera_linear_params(self) -> int:
        return self.dim * CAMERA_DIM * PATCH + 2 * 9 * self.dim**2 if self.has_camera else 0

    @property
    def motion_params(self) -> int:
        """Of the motion controller of this width, for cards that have one."""
        return self.dim * (self.freq_dim + 1) + 7 * self.dim * (self.dim + 1)

    @property
    def vace_block_params(self) -> int:
        """With its projection to the hint."""
        return self.block_params + self.dim * (self.dim + 1)

    @property
    def vace_other_params(self) -> int:
        if not self.num_vace_layers:
            return 0
        return self.dim * (self.dim + 1) + self.dim * (VACE_IN_DIM * PATCH + 1)

    def other_params(self, in_dim: int) -> int:
        """Outside all blocks: embeddings and head."""
        dim, out = self.dim, self.out_dim * PATCH
        patches = dim * (in_dim * PATCH + 1)
        text = dim * (self.text_dim + 1) + dim * (dim + 1)
        time = dim * (self.freq_dim + 1) + dim * (dim + 1) + 6 * dim * (dim + 1)
        image = 0
        if self.num_image_tokens:
            image = CLIP_DIM * (CLIP_DIM + 1) + dim * (CLIP_DIM + 1) + 2 * (CLIP_DIM + dim)
        if self.num_image_tokens > CLIP_TOKENS:
            image += self.num_image_tokens * CLIP_DIM
        reference = dim * (16 * PATCH + 1) if self.has_reference else 0
        camera = self.camera_linear_params + 3 * dim if self.has_camera else 0
        embedded = patches + text + time + image + reference + camera
        return embedded + out * (dim + 1) + 2 * dim + self.vace_other_params

    def num_params(self, in_dim: int) -> int:
        blocks = self.num_layers * self.block_params + self.num_vace_layers * self.vace_block_params
        return blocks + self.other_params(in_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeShape:
    """What a video costs in a causal video VAE, which works on one latent frame (four pictures) after the other."""

    num_params: int
    encode_flops: tuple[float, float]
    """Of the convolutions, per pixel of a picture: for the first frame, and for four more."""
    decode_flops: tuple[float, float]
    encode_attention_dim: int
    """Width of the one attention, which is among the latent pixels of a frame."""
    decode_attention_dim: int
    encode_values: tuple[float, float]
    """Numbers alive at the peak, per pixel of a picture: of the network, and for each frame of the video."""
    decode_values: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderShape:
    """A T5 encoder."""

    num_params: int
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int

    @property
    def block_linear_params(self) -> int:
        """Of one block; queries are as wide as the model, and the feed-forward has a gate."""
        return 4 * self.dim**2 + 3 * self.dim * self.ffn_dim


DIT_1_3B = DitShape(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
DIT_14B = DitShape(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
DIT_5B = DitShape(dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, out_dim=48, has_clean_frame=True)
DIT_MINI = DitShape(dim=192, ffn_dim=768, num_heads=4, num_layers=8, text_dim=192)

# Counted on DiffSynth's classes on the meta device, at 832x480 and 1280x704 with 17 to 81 frames. The peak is that of
# the operators' results; a convolution's workspace, which cuDNN chooses, comes on top.
VAE_WAN = VaeShape(
    num_params=126_892_531,
    encode_flops=(6.657e6, 20.011e6),
    decode_flops=(10.748e6, 33.780e6),
    encode_attention_dim=384,
    decode_attention_dim=384,
    encode_values=(3520, 3.125),
    decode_values=(4861, 3.125),
)
VAE_WAN_22 = VaeShape(
    num_params=704_688_668,
    encode_flops=(4.644e6, 13.963e6),
    decode_flops=(22.776e6, 73.577e6),
    encode_attention_dim=640,
    decode_attention_dim=1024,
    encode_values=(1792, 6.094),
    decode_values=(5379, 3.094),
)
VAE_MINI = VaeShape(
    num_params=2_680_764,
    encode_flops=(0.0791e6, 0.2044e6),
    decode_flops=(0.1827e6, 0.5308e6),
    encode_attention_dim=64,
    decode_attention_dim=64,
    encode_values=(276, 6.125),
    decode_values=(604, 3.125),
)

UMT5_XXL = TextEncoderShape(num_params=5_680_910_336, dim=4096, ffn_dim=10240, num_heads=64, num_layers=24)
T5_MINI = TextEncoderShape(num_params=935_104, dim=192, ffn_dim=384, num_heads=4, num_layers=2)
