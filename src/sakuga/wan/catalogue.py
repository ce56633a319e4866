"""The catalogue of model cards: the embedded mini and the Wan models of DiffSynth's own examples.

File patterns are those of DiffSynth's `examples/wanvideo/model_inference`; steps, guidance, shift, boundary and frame
rate are the defaults of the models' authors; parameter counts are those of DiffSynth's registered shapes.
To add a card: one entry here; `tests/unit/test_cards.py` says what does not fit.
"""

from dataclasses import replace

from sakuga.errors import ModelError, did_you_mean, shown
from sakuga.wan.cards import CardFile, ModelCard
from sakuga.wan.shapes import (
    CLIP_TOKENS,
    DIT_1_3B,
    DIT_5B,
    DIT_14B,
    DIT_MINI,
    T5_MINI,
    VAE_MINI,
    VAE_WAN_22,
)

_DIT = "diffusion_pytorch_model*.safetensors"
_TOKENIZER = CardFile(part="tokenizer", model_id="Wan-AI/Wan2.1-T2V-1.3B", pattern="google/umt5-xxl/")


def _files(model_id: str, *, vae: str = "Wan2.1_VAE.pth") -> tuple[CardFile, ...]:
    return (
        CardFile(part="dit", model_id=model_id, pattern=_DIT),
        CardFile(part="text_encoder", model_id=model_id, pattern="models_t5_umt5-xxl-enc-bf16.pth"),
        CardFile(part="vae", model_id=model_id, pattern=vae),
        _TOKENIZER,
    )


def _files_clip(model_id: str) -> tuple[CardFile, ...]:
    pattern = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    return (*_files(model_id), CardFile(part="image_encoder", model_id=model_id, pattern=pattern))


def _files_two_experts(model_id: str) -> tuple[CardFile, ...]:
    return (
        CardFile(part="dit", model_id=model_id, pattern=f"high_noise_model/{_DIT}"),
        CardFile(part="dit2", model_id=model_id, pattern=f"low_noise_model/{_DIT}"),
        *_files(model_id)[1:],
    )


_MINI = ModelCard(
    name="wan-mini",
    family="mini",
    title="embedded miniature Wan, trained on drawn dancers",
    files=tuple(
        CardFile(part=part, model_id="wan-mini", pattern=pattern)
        for part, pattern in (
            ("dit", "dit.safetensors"),
            ("text_encoder", "text_encoder.safetensors"),
            ("vae", "vae.safetensors"),
            ("tokenizer", "tokenizer/"),
        )
    ),
    tasks=("t2v", "i2v", "flf2v", "v2v"),
    num_params=5_180_416,
    in_dim=36,
    dit=DIT_MINI,
    vae=VAE_MINI,
    text_encoder=T5_MINI,
    width=128,
    height=128,
    num_frames=33,
    fps=15,
    num_inference_steps=20,
    # Four validation clips: figure gain and motion ratio 3.97 dB and 0.84 at 1.0, 3.94 and 0.95 at 1.5, 3.73 and 1.04
    # at 2.0.
    guidance_scale=1.5,
    precision="fp32",
    # `sakuga calibrate cache --steps 50 --steps 20`, 2026-11-21: 16 renders, 1056 pairs, R2 0.51, error 29 %.
    # A fit to 50 steps alone comes to 23 % there and guesses 20 steps a quarter too low. After training, fit again.
    teacache_fitted=(-135.693, 50.99894, -5.521846, 0.8425988, 0.01262631),
    loras=("fairy", "fast4", "fast8"),
    embedded=True,
)

_T2V_SMALL = ModelCard(
    name="wan2.1-t2v-1.3b",
    family="Wan2.1",
    title="text to video, small",
    files=_files("Wan-AI/Wan2.1-T2V-1.3B"),
    tasks=("t2v", "v2v"),
    num_params=1_418_996_800,
    in_dim=16,
    dit=DIT_1_3B,
    teacache_id="Wan2.1-T2V-1.3B",
)
_T2V = replace(
    _T2V_SMALL,
    name="wan2.1-t2v-14b",
    title="text to video",
    files=_files("Wan-AI/Wan2.1-T2V-14B"),
    num_params=14_288_491_584,
    dit=DIT_14B,
    width=1280,
    height=720,
    teacache_id="Wan2.1-T2V-14B",
)

_I2V_480P = ModelCard(
    name="wan2.1-i2v-14b-480p",
    family="Wan2.1",
    title="image to video, 480p",
    files=_files_clip("Wan-AI/Wan2.1-I2V-14B-480P"),
    tasks=("i2v",),
    num_params=16_394_878_784,
    in_dim=36,
    dit=replace(DIT_14B, num_image_tokens=CLIP_TOKENS),
    needs_clip=True,
    num_inference_steps=40,
    flow_shift=3.0,
    teacache_id="Wan2.1-I2V-14B-480P",
)
_I2V_720P = replace(
    _I2V_480P,
    name="wan2.1-i2v-14b-720p",
    title="image to video, 720p",
    files=_files_clip("Wan-AI/Wan2.1-I2V-14B-720P"),
    width=1280,
    height=720,
    flow_shift=5.0,
    teacache_id="Wan2.1-I2V-14B-720P",
)
_FLF2V = replace(
    _I2V_720P,
    name="wan2.1-flf2v-14b-720p",
    title="first and last frame to video, 720p",
    files=_files_clip("Wan-AI/Wan2.1-FLF2V-14B-720P"),
    tasks=("flf2v",),
    num_params=16_395_536_704,
    dit=replace(DIT_14B, num_image_tokens=2 * CLIP_TOKENS),
    num_inference_steps=50,
    flow_shift=16.0,
    teacache_id=None,
)

_FUN_INP_SMALL = replace(
    _I2V_480P,
    name="wan2.1-fun-inp-1.3b",
    title="Fun: image, or first and last frame, to video, small",
    files=_files_clip("PAI/Wan2.1-Fun-1.3B-InP"),
    tasks=("i2v", "flf2v"),
    num_params=1_564_428_608,
    dit=replace(DIT_1_3B, num_image_tokens=CLIP_TOKENS),
    num_inference_steps=50,
    flow_shift=5.0,
    teacache_id=None,
)
_FUN_INP = replace(
    _FUN_INP_SMALL,
    name="wan2.1-fun-inp-14b",
    title="Fun: image, or first and last frame, to video",
    files=_files_clip("PAI/Wan2.1-Fun-14B-InP"),
    num_params=16_394_878_784,
    dit=replace(DIT_14B, num_image_tokens=CLIP_TOKENS),
)
_FUN_CONTROL_SMALL = replace(
    _FUN_INP_SMALL,
    name="wan2.1-fun-control-1.3b",
    title="Fun: control video to video, small",
    files=_files_clip("PAI/Wan2.1-Fun-1.3B-Control"),
    tasks=("control",),
    num_params=1_564_502_336,
    in_dim=48,
    dit=replace(DIT_1_3B, num_image_tokens=CLIP_TOKENS),
    width=576,
    height=832,
    num_frames=49,
)
_FUN_CONTROL = replace(
    _FUN_CONTROL_SMALL,
    name="wan2.1-fun-control-14b",
    title="Fun: control video to video",
    files=_files_clip("PAI/Wan2.1-Fun-14B-Control"),
    num_params=16_395_124_544,
    dit=replace(DIT_14B, num_image_tokens=CLIP_TOKENS),
)
_FUN11_CONTROL_SMALL = replace(
    _FUN_CONTROL_SMALL,
    name="wan2.1-fun-v1.1-control-1.3b",
    title="Fun 1.1: control video and reference image to video, small",
    files=_files_clip("PAI/Wan2.1-Fun-V1.1-1.3B-Control"),
    num_params=1_564_602_176,
    dit=replace(DIT_1_3B, num_image_tokens=CLIP_TOKENS, has_reference=True),
    takes_reference=True,
)
_FUN11_CONTROL = replace(
    _FUN11_CONTROL_SMALL,
    name="wan2.1-fun-v1.1-control-14b",
    title="Fun 1.1: control video and reference image to video",
    files=_files_clip("PAI/Wan2.1-Fun-V1.1-14B-Control"),
    num_params=16_395_457_344,
    dit=replace(DIT_14B, num_image_tokens=CLIP_TOKENS, has_reference=True),
)

_CAMERA_SMALL = replace(
    _FUN_INP_SMALL,
    name="wan2.1-fun-v1.1-control-camera-1.3b",
    title="Fun 1.1: image and path of the camera to video, small",
    files=_files_clip("PAI/Wan2.1-Fun-V1.1-1.3B-Control-Camera"),
    tasks=("camera",),
    num_params=1_616_313_152,
    in_dim=32,
    dit=replace(DIT_1_3B, num_image_tokens=CLIP_TOKENS, has_camera=True),
)
_CAMERA = replace(
    _CAMERA_SMALL,
    name="wan2.1-fun-v1.1-control-camera-14b",
    title="Fun 1.1: image and path of the camera to video",
    files=_files_clip("PAI/Wan2.1-Fun-V1.1-14B-Control-Camera"),
    num_params=16_898_128_704,
    dit=replace(DIT_14B, num_image_tokens=CLIP_TOKENS, has_camera=True),
)

_SPEED_ID = "DiffSynth-Studio/Wan2.1-1.3b-speedcontrol-v1"
_SPEED_SMALL = replace(
    _T2V_SMALL,
    name="wan2.1-1.3b-speedcontrol-v1",
    title="text to video at a chosen speed, small",
    files=(
        *_T2V_SMALL.files,
        CardFile(part="motion_controller", model_id=_SPEED_ID, pattern="model.safetensors"),
    ),
    num_params=1_435_917_376,
    teacache_id=None,
)

_VACE_SMALL = replace(
    _T2V_SMALL,
    name="wan2.1-vace-1.3b",
    title="VACE: edit, control and reference image, small",
    files=_files("Wan-AI/Wan2.1-VACE-1.3B"),
    tasks=("t2v", "v2v", "vace"),
    num_params=2_153_972_032,
    dit=replace(DIT_1_3B, num_vace_layers=15),
    flow_shift=16.0,
    teacache_id=None,
    takes_reference=True,
)
_VACE = replace(
    _VACE_SMALL,
    name="wan2.1-vace-14b",
    title="VACE: edit, control and reference image",
    files=_files("Wan-AI/Wan2.1-VACE-14B"),
    num_params=17_337_592_896,
    dit=replace(DIT_14B, num_vace_layers=8),
    width=1280,
    height=720,
)

_T2V_A14B = ModelCard(
    name="wan2.2-t2v-a14b",
    family="Wan2.2",
    title="text to video, two experts",
    files=_files_two_experts("Wan-AI/Wan2.2-T2V-A14B"),
    tasks=("t2v", "v2v"),
    num_params=14_288_491_584,
    in_dim=16,
    dit=DIT_14B,
    two_experts=True,
    boundary_ratio=0.875,
    width=1280,
    height=720,
    num_inference_steps=40,
    guidance_scale=4.0,
    guidance_scale_2=3.0,
    flow_shift=12.0,
)
_I2V_A14B = replace(
    _T2V_A14B,
    name="wan2.2-i2v-a14b",
    title="image to video, two experts",
    files=_files_two_experts("Wan-AI/Wan2.2-I2V-A14B"),
    tasks=("i2v",),
    num_params=14_288_901_184,
    in_dim=36,
    dit=DIT_14B,
    boundary_ratio=0.9,
    guidance_scale=3.5,
    guidance_scale_2=3.5,
    flow_shift=5.0,
)
_CAMERA_A14B = replace(
    _I2V_A14B,
    name="wan2.2-fun-a14b-control-camera",
    title="Fun: image and path of the camera to video, two experts",
    files=_files_two_experts("PAI/Wan2.2-Fun-A14B-Control-Camera"),
    tasks=("camera",),
    num_params=14_792_233_024,
    dit=replace(DIT_14B, has_camera=True),
    width=832,
    height=480,
    num_inference_steps=50,
    guidance_scale=6.0,
    guidance_scale_2=None,
)
_TI2V_5B = ModelCard(
    name="wan2.2-ti2v-5b",
    family="Wan2.2",
    title="text or image to video, high compression",
    files=_files("Wan-AI/Wan2.2-TI2V-5B", vae="Wan2.2_VAE.pth"),
    tasks=("t2v", "i2v"),
    num_params=4_999_787_712,
    in_dim=48,
    dit=DIT_5B,
    vae=VAE_WAN_22,
    z_dim=48,
    spatial_factor=16,
    size_multiple=32,
    width=1280,
    height=704,
    num_frames=121,
    fps=24,
)

CATALOGUE: tuple[ModelCard, ...] = (
    _MINI,
    _T2V_SMALL,
    _T2V,
    _I2V_480P,
    _I2V_720P,
    _FLF2V,
    _FUN_INP_SMALL,
    _FUN_INP,
    _FUN_CONTROL_SMALL,
    _FUN_CONTROL,
    _FUN11_CONTROL_SMALL,
    _FUN11_CONTROL,
    _CAMERA_SMALL,
    _CAMERA,
    _SPEED_SMALL,
    _VACE_SMALL,
    _VACE,
    _T2V_A14B,
    _I2V_A14B,
    _CAMERA_A14B,
    _TI2V_5B,
)
"""Names are lower case; `card()` accepts any case."""


def cards() -> tuple[ModelCard, ...]:
    """The whole catalogue, the embedded model first."""
    return CATALOGUE


def card(name: str) -> ModelCard:
    """The card of that name (letter case does not matter); ModelError with a guess when there is none."""
    by_lower = {known.name: known for known in cards()}
    found = by_lower.get(name.lower())
    if found is not None:
        return found
    hint = did_you_mean(name.lower(), by_lower) or "; `sakuga models list` shows them all"
    raise ModelError(f"there is no model {shown(name)}{hint}")
