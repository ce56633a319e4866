"""Operations and peaks of the cost model are those of the engine's own forward pass and of DiffSynth's networks.

Networks are built at full width on the meta device, where nothing is computed.
Run: pytest tests/unit/test_cost_counts.py
"""

from dataclasses import fields, replace

import pytest
import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vace import VaceWanModel
from diffsynth.models.wan_video_vae import VideoVAE38_, VideoVAE_
from torch.utils.flop_counter import FlopCounterMode

from live_bytes import LiveBytes
from sakuga.cost.footprint import evaluation_bytes
from sakuga.cost.work import evaluation_work, text_work, vae_work
from sakuga.engine.evaluation import LocalEvaluation
from sakuga.engine.state import Conditioning
from sakuga.wan.caching import full_velocity
from sakuga.wan.catalogue import card
from sakuga.wan.forward import DitForward
from sakuga.wan.mini.models import MiniVideoVAE

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FAMILIES = {
    "t2v": "wan2.1-t2v-1.3b",
    "i2v": "wan2.1-i2v-14b-480p",
    "vace": "wan2.1-vace-14b",
    "fun": "wan2.1-fun-v1.1-control-1.3b",
    "camera": "wan2.1-fun-v1.1-control-camera-1.3b",
    "ti2v": "wan2.2-ti2v-5b",
    "mini": "wan-mini",
}


class OneEvaluation:
    """A card's DiT at full width on the meta device, with fewer blocks, and one evaluation of it."""

    num_layers = 4
    grid = (5, 20, 24)
    """Latent frames, rows and columns."""

    def __init__(self, family: str, dtype: torch.dtype = torch.bfloat16) -> None:
        full = card(FAMILIES[family])
        num_vace = 2 if full.dit.num_vace_layers else 0
        self.card = replace(full, dit=replace(full.dit, num_layers=self.num_layers, num_vace_layers=num_vace))
        self.dtype = dtype
        shape = self.card.dit
        common = {"dim": shape.dim, "ffn_dim": shape.ffn_dim, "num_heads": shape.num_heads, "eps": 1e-6}
        with torch.device("meta"):
            self.dit = WanModel(
                in_dim=full.in_dim, out_dim=shape.out_dim, text_dim=shape.text_dim, freq_dim=shape.freq_dim,
                patch_size=(1, 2, 2), num_layers=shape.num_layers, has_image_input=shape.num_image_tokens > 0,
                has_ref_conv=shape.has_reference, seperated_timestep=shape.has_clean_frame,
                add_control_adapter=shape.has_camera, require_vae_embedding=full.in_dim > full.z_dim, **common,
            )  # fmt: skip
            self.vace = VaceWanModel(vace_layers=(0, 2), **common) if num_vace else None
        self.modules = [module.to(dtype) for module in (self.dit, self.vace) if module is not None]
        self.forward = DitForward(self.dit, self.vace)
        frames, rows, columns = self.grid
        self.tokens = (frames + shape.has_reference) * rows * columns // 4
        self.conditioning = self._conditioning()
        self.context = self.forward.context(self.conditioning.context_positive_BLD, self.conditioning.clip_feature_BLD)

    @property
    def given(self) -> list[torch.Tensor]:
        """What is there before the evaluation: weights and conditioning."""
        inputs = [getattr(self.conditioning, field.name) for field in fields(self.conditioning)]
        weights = [parameter for module in self.modules for parameter in module.parameters()]
        return weights + [tensor for tensor in inputs if tensor is not None]

    def run(self, kernel=None) -> None:
        step = LocalEvaluation(
            forward=self.forward,
            context=self.context,
            kernel=kernel or _attend,
            conditioning=self.conditioning,
            latents_BCTHW=self._empty(1, self.card.z_dim, *self.grid, dtype=torch.float32),
            sigma=0.5,
            timestep_B=self._empty(1),
            index=0,
            num_steps=4,
        )
        with torch.no_grad():
            full_velocity(step)

    def _conditioning(self) -> Conditioning:
        shape = self.card.dit
        frames, rows, columns = self.grid
        rays = self._empty(1, 24, frames, 8 * rows, 8 * columns) if shape.has_camera else None
        beside = self.card.in_dim - self.card.z_dim
        return Conditioning(
            context_positive_BLD=self._empty(1, 512, shape.text_dim),
            context_negative_BLD=None,
            y_BCTHW=self._empty(1, beside, *self.grid) if beside else None,
            clip_feature_BLD=self._empty(1, 257, 1280) if shape.num_image_tokens else None,
            reference_latents_BCTHW=self._empty(1, 16, 1, rows, columns) if shape.has_reference else None,
            vace_context_BCTHW=self._empty(1, 96, *self.grid) if self.vace is not None else None,
            control_camera_BCTHW=rays,
            first_frame_latents_BCTHW=self._empty(1, 48, 1, rows, columns) if shape.has_clean_frame else None,
        )

    def _empty(self, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype or self.dtype, device="meta")


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    q, k, v = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _attend_in_place(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    """What a fused kernel keeps: its result. On the meta device PyTorch would count the scores."""
    return torch.empty_like(q)


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_an_evaluation_are_those_of_the_forward_pass(family):
    one = OneEvaluation(family)
    with FlopCounterMode(display=False) as counted:
        one.run()
    rest, blocks = evaluation_work(one.card, tokens=one.tokens, text_tokens=512, vace=one.vace is not None)
    # Left out of the model: the convolution of a reference frame, 0.04 % at this size.
    assert (rest + blocks).flops == pytest.approx(counted.get_total_flops(), rel=0.001)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_peak_of_an_evaluation_is_that_of_the_forward_pass(family, precision):
    one = OneEvaluation(family, DTYPES[precision])
    with LiveBytes(one.given) as counted:
        one.run(_attend_in_place)
    predicted = evaluation_bytes(
        one.card,
        precision,
        tokens=one.tokens,
        vace=one.vace is not None,
        clean_frame=one.conditioning.first_frame_latents_BCTHW is not None,
    )
    embedded = 512 * one.card.dit.dim * DTYPES[precision].itemsize  # keys and values of the text, a hundredth at 720p
    assert predicted == pytest.approx(counted.peak, abs=4 * embedded, rel=0.01)


VAES = {
    "wan2.1-t2v-1.3b": lambda: VideoVAE_(dim=96, z_dim=16),
    "wan2.2-ti2v-5b": lambda: VideoVAE38_(dim=160, z_dim=48),
    "wan-mini": lambda: MiniVideoVAE().model,
}


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", VAES)
def test_operations_and_peak_of_the_vae(name, direction, monkeypatch):
    entry, width, height, num_frames = card(name), 384, 320, 17
    with torch.device("meta"):
        vae = VAES[name]().to(torch.bfloat16).eval().requires_grad_(False)
    num_latents = (num_frames - 1) // 4 + 1
    factor = entry.spatial_factor
    size = {
        "encode": (3, num_frames, height, width),
        "decode": (entry.z_dim, num_latents, height // factor, width // factor),
    }
    x = torch.empty(1, *size[direction], dtype=torch.bfloat16, device="meta")
    scale = [torch.empty(entry.z_dim, device="meta"), torch.empty(entry.z_dim, device="meta")]
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        getattr(vae, direction)(x, scale)
    assert vae_work(entry, direction, width, height, num_frames).flops == pytest.approx(
        flops.get_total_flops(), rel=0.01
    )
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, **rest: torch.empty_like(q)
    )
    with torch.no_grad(), LiveBytes(vae.parameters()) as live:
        getattr(vae, direction)(x, scale)
    per_pixel, per_frame = getattr(entry.vae, f"{direction}_values")
    assert (per_pixel + per_frame * num_frames) * width * height * 2 == pytest.approx(live.peak, rel=0.02)


def test_operations_of_the_text_encoder():
    with torch.device("meta"):
        encoder = WanTextEncoder().eval()
        ids, mask = torch.zeros(1, 512, dtype=torch.long), torch.ones(1, 512, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        encoder(ids, mask)
    assert text_work(card("wan2.1-t2v-14b").text_encoder, 512).flops == counted.get_total_flops()
