"""DiffSynth's real Wan classes at tiny widths with random weights, as loaded models for engine tests.

A render of any of them takes a fraction of a second; none has any skill.
"""

import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_image_encoder import WanImageEncoder, clip_xlm_roberta_vit_h_14
from diffsynth.models.wan_video_motion_controller import WanMotionControllerModel
from diffsynth.models.wan_video_text_encoder import HuggingfaceTokenizer, WanTextEncoder
from diffsynth.models.wan_video_vace import VaceWanModel
from diffsynth.models.wan_video_vae import VideoVAE38_, VideoVAE_, WanVideoVAE, WanVideoVAE38
from diffsynth.pipelines.wan_video import WanVideoPipeline

from sakuga.wan.cards import ModelCard
from sakuga.wan.catalogue import card
from sakuga.wan.loading import LoadedModel

TEXT_DIM = 16
DIM = 96
"""Two heads of 48, the smallest usual size that the 3D RoPE can split."""


class TinyVae(WanVideoVAE):
    """`WanVideoVAE` takes no width."""

    def __init__(self) -> None:
        super(WanVideoVAE, self).__init__()
        self.mean, self.std = torch.zeros(16), torch.ones(16)
        self.scale = [self.mean, 1.0 / self.std]
        self.model = VideoVAE_(dim=8, z_dim=16, num_res_blocks=1).eval()
        self.upsampling_factor, self.z_dim = 8, 16


class TinyVae38(WanVideoVAE38):
    """`WanVideoVAE38` takes no width of the decoder."""

    def __init__(self) -> None:
        super(WanVideoVAE, self).__init__()
        self.mean, self.std = torch.zeros(48), torch.ones(48)
        self.scale = [self.mean, 1.0 / self.std]
        self.model = VideoVAE38_(dim=8, dec_dim=8, z_dim=48, num_res_blocks=1).eval()
        self.upsampling_factor, self.z_dim = 16, 48


class TinyClip(WanImageEncoder):
    """`WanImageEncoder` takes no depth. Width and number of tokens are what the DiT expects: 1280 and 257.

    The last layer of two is left out by design, as it is of the real one's 32.
    """

    def __init__(self) -> None:
        super(WanImageEncoder, self).__init__()
        self.model, self.transforms = clip_xlm_roberta_vit_h_14(
            return_transforms=True, vision_layers=2, vision_heads=20, vision_mlp_ratio=0.1, embed_dim=16
        )


def tiny_dit(in_dim: int = 16, out_dim: int = 16, **rest) -> WanModel:
    return WanModel(
        dim=DIM, in_dim=in_dim, ffn_dim=DIM, out_dim=out_dim, text_dim=TEXT_DIM, freq_dim=32, eps=1e-6,
        patch_size=(1, 2, 2), num_heads=2, num_layers=2, **({"has_image_input": False} | rest),
    )  # fmt: skip


def tiny_model(base: ModelCard, tokenizer_dir, *, dit: WanModel, seed: int, **parts) -> LoadedModel:
    """A loaded model of a card's name and rules; `parts` are further modules of the pipeline."""
    torch.manual_seed(seed)
    pipe = WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.dit = dit
    pipe.vae = parts.pop("vae", None) or TinyVae()
    pipe.text_encoder = WanTextEncoder(
        vocab=1024, dim=TEXT_DIM, dim_attn=16, dim_ffn=16, num_heads=2, num_layers=1, num_buckets=8
    )
    pipe.tokenizer = HuggingfaceTokenizer(name=str(tokenizer_dir), seq_len=512, clean="whitespace")
    for name, module in parts.items():
        setattr(pipe, name, module)
    pipe.height_division_factor = pipe.width_division_factor = pipe.vae.upsampling_factor * 2
    pipe.eval().requires_grad_(False)
    return LoadedModel(card=base, pipe=pipe, precision="fp32", weights_sha256="ab" * 32, file_sha256={})


def tiny_t2v(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    return tiny_model(card("wan2.1-t2v-1.3b"), tokenizer_dir, dit=tiny_dit(), seed=seed)


def tiny_i2v(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit, clip = tiny_dit(36, has_image_input=True), TinyClip()
    return tiny_model(card("wan2.1-i2v-14b-480p"), tokenizer_dir, dit=dit, seed=seed, image_encoder=clip)


def tiny_flf2v(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit, clip = tiny_dit(36, has_image_input=True, has_image_pos_emb=True), TinyClip()
    torch.nn.init.normal_(dit.img_emb.emb_pos)  # made as zeros, which would tell no position from another
    return tiny_model(card("wan2.1-flf2v-14b-720p"), tokenizer_dir, dit=dit, seed=seed, image_encoder=clip)


def tiny_fun_inp(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit, clip = tiny_dit(36, has_image_input=True), TinyClip()
    return tiny_model(card("wan2.1-fun-inp-1.3b"), tokenizer_dir, dit=dit, seed=seed, image_encoder=clip)


def tiny_camera(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit, clip = tiny_dit(32, has_image_input=True, add_control_adapter=True), TinyClip()
    base = card("wan2.1-fun-v1.1-control-camera-1.3b")
    return tiny_model(base, tokenizer_dir, dit=dit, seed=seed, image_encoder=clip)


def tiny_camera_two_experts(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit, dit2 = (tiny_dit(36, add_control_adapter=True, require_clip_embedding=False) for _ in range(2))
    return tiny_model(card("wan2.2-fun-a14b-control-camera"), tokenizer_dir, dit=dit, seed=seed, dit2=dit2)


def tiny_speed(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit, controller = tiny_dit(), WanMotionControllerModel(freq_dim=32, dim=DIM)
    base = card("wan2.1-1.3b-speedcontrol-v1")
    return tiny_model(base, tokenizer_dir, dit=dit, seed=seed, motion_controller=controller)


def tiny_two_experts(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit, dit2 = tiny_dit(), tiny_dit()
    return tiny_model(card("wan2.2-t2v-a14b"), tokenizer_dir, dit=dit, seed=seed, dit2=dit2)


def tiny_plain(tokenizer_dir, seed: int = 0) -> LoadedModel:
    """Mask and image as channels, no CLIP, as Wan-mini."""
    torch.manual_seed(seed)
    return tiny_model(card("wan-mini"), tokenizer_dir, dit=tiny_dit(36, require_clip_embedding=False), seed=seed)


def tiny_plain_two_experts(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit, dit2 = (tiny_dit(36, require_clip_embedding=False) for _ in range(2))
    return tiny_model(card("wan2.2-i2v-a14b"), tokenizer_dir, dit=dit, seed=seed, dit2=dit2)


def tiny_ti2v(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit = tiny_dit(
        48, 48, seperated_timestep=True, require_clip_embedding=False, require_vae_embedding=False,
        fuse_vae_embedding_in_latents=True,
    )  # fmt: skip
    return tiny_model(card("wan2.2-ti2v-5b"), tokenizer_dir, dit=dit, seed=seed, vae=TinyVae38())


def tiny_vace(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    vace = VaceWanModel(
        vace_layers=(0, 1), vace_in_dim=96, patch_size=(1, 2, 2), has_image_input=False, dim=DIM, num_heads=2,
        ffn_dim=DIM, eps=1e-6,
    )  # fmt: skip
    return tiny_model(card("wan2.1-vace-1.3b"), tokenizer_dir, dit=tiny_dit(), seed=seed, vace=vace)


def tiny_control(tokenizer_dir, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    dit = tiny_dit(48, has_image_input=True, has_ref_conv=True)
    return tiny_model(card("wan2.1-fun-v1.1-control-1.3b"), tokenizer_dir, dit=dit, seed=seed)


tiny_t2i = tiny_v2v = tiny_t2v
tiny_plain_flf2v = tiny_plain_t2v = tiny_plain_v2v = tiny_plain
tiny_two_experts_v2v, tiny_speed_v2v, tiny_ti2v_t2v = tiny_two_experts, tiny_speed, tiny_ti2v
