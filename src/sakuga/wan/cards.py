"""Model cards: what each Wan model is, which files it needs and which videos it can render.

A card is a plain value. It knows file names and rules, no folders and no weights; `wan/loading.py` finds the files.
The cards themselves stand in `wan/catalogue.py`.     Run: pytest tests/unit/test_cards.py
"""

from dataclasses import dataclass

from sakuga.errors import GeometryError
from sakuga.wan.shapes import UMT5_XXL, VAE_WAN, DitShape, TextEncoderShape, VaeShape

TASKS = ("t2v", "i2v", "flf2v", "v2v", "control", "vace", "camera")
"""Text, image, first-and-last-frame, video, control-video, VACE and camera-path conditioned rendering."""


KEPT_LAYERS = (
    "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1",
    "img_emb.proj.1", "img_emb.proj.3", "head.head",
)  # fmt: skip
"""Run once a render or once a step, and every block depends on what they give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFile:
    """One part of a model: where its authors keep it, as DiffSynth's examples name it."""

    part: str
    """dit | dit2 (low-noise expert) | motion_controller | text_encoder | vae | image_encoder | tokenizer."""
    model_id: str
    """Repository on ModelScope or Hugging Face."""
    pattern: str
    """File pattern within it; one that ends in a slash means the whole folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model that the engine can load, with its rules and defaults."""

    name: str
    family: str
    """"Wan2.1", "Wan2.2" or "mini"."""
    title: str
    licence: str = "Apache-2.0"
    files: tuple[CardFile, ...]
    tasks: tuple[str, ...]
    num_params: int
    """Of one DiT with its VACE branch or motion controller, without text encoder and VAE."""
    in_dim: int
    """Input channels of the DiT: 16 or 48 are latents alone, 32 has an image, 36 mask and image, 48 of Fun Control the
    video too."""
    dit: DitShape
    """Of each expert."""
    vae: VaeShape = VAE_WAN
    text_encoder: TextEncoderShape = UMT5_XXL
    z_dim: int = 16
    """Latent channels of the VAE."""
    spatial_factor: int = 8
    """Pixels per latent along each side."""
    size_multiple: int = 16
    """Width and height are multiples of it: the VAE's factor times the DiT's patch of two."""
    needs_clip: bool = False
    takes_reference: bool = False
    """A reference image can guide it."""
    two_experts: bool = False
    boundary_ratio: float | None = None
    """Where the low-noise expert takes over, as a fraction of the training timesteps; two experts only."""
    tokenizer_max_tokens: int = 512

    width: int = 832
    height: int = 480
    num_frames: int = 81
    fps: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    guidance_scale_2: float | None = None
    """Guidance of the low-noise expert, where it differs."""
    flow_shift: float = 5.0
    precision: str = "bf16"
    kept_layers: tuple[str, ...] = KEPT_LAYERS
    """Linear layers of the DiT that quantized precisions leave in bf16."""

    teacache_id: str | None = None
    """Name of the model in DiffSynth's table of TeaCache coefficients; None where it has none."""
    teacache_fitted: tuple[float, ...] = ()
    """Our own coefficients where DiffSynth has none, by `sakuga calibrate cache`.

    They decide pictures and stand in no recipe: whoever changes them raises `NUMERICS_VERSION`.
    """
    loras: tuple[str, ...] = ()
    """LoRAs that come with the package, by name."""
    embedded: bool = False
    """The weights are part of the package."""

    @property
    def takes_first_frame(self) -> bool:
        return bool({"i2v", "flf2v"} & set(self.tasks))

    @property
    def controls_speed(self) -> bool:
        """A motion_bucket_id sets how fast things move."""
        return bool(self.parts("motion_controller"))

    def check_geometry(self, width: int, height: int, num_frames: int) -> None:
        """Raise GeometryError, with the nearest legal value, unless the model can render this size and length."""
        legal_width, legal_height = (_nearest(size, self.size_multiple, 0) for size in (width, height))
        if (width, height) != (legal_width, legal_height):
            raise GeometryError(
                f"{width}x{height} is not a multiple of {self.size_multiple}, as {self.name} needs; "
                f"nearest: {legal_width}x{legal_height}"
            )
        legal_frames = self.nearest_frames(num_frames)
        if num_frames != legal_frames:
            raise GeometryError(
                f"{num_frames} frames is not a multiple of 4 plus 1, as the VAE needs; nearest: {legal_frames}"
            )

    def nearest_frames(self, num_frames: int) -> int:
        """The length closest to it that the VAE can make; of two, the longer one."""
        return _nearest(num_frames, 4, 1)

    def latent_shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int, int]:
        """(B, C, T, H, W) of the latents of a legal geometry."""
        return (1, self.z_dim, (num_frames - 1) // 4 + 1, height // self.spatial_factor, width // self.spatial_factor)

    def teacache_coefficients(self) -> tuple[float, ...] | None:
        """Of the installed DiffSynth's polynomial or of our own, highest power first; None where there is neither."""
        if self.teacache_id is None:
            return self.teacache_fitted or None
        from diffsynth.pipelines.wan_video import TeaCache

        return tuple(TeaCache(1, 0.1, self.teacache_id).coefficients)

    def parts(self, part: str) -> tuple[CardFile, ...]:
        return tuple(file for file in self.files if file.part == part)


def _nearest(value: int, multiple: int, offset: int) -> int:
    """The number closest to `value` of the form n * multiple + offset, n so that it is positive.

    >>> _nearest(721, 16, 0), _nearest(82, 4, 1), _nearest(0, 16, 0), _nearest(-3, 4, 1)
    (720, 81, 16, 1)
    """
    smallest = offset if offset > 0 else multiple
    return max(smallest, (value - offset + multiple // 2) // multiple * multiple + offset)
