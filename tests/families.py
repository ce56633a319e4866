"""One small render of every family of models, for tests that hold something for all of them."""

from sakuga.engine import RenderInputs
from sakuga.media import image_sha256, video_sha256
from sakuga.recipe import ImageRef, RenderRecipe, VideoRef
from stock_pipeline import clip, picture

MODELS = {
    "t2v": "wan2.1-t2v-1.3b",
    "t2i": "wan2.1-t2v-1.3b",
    "v2v": "wan2.1-t2v-1.3b",
    "two_experts": "wan2.2-t2v-a14b",
    "i2v": "wan2.1-i2v-14b-480p",
    "flf2v": "wan2.1-flf2v-14b-720p",
    "fun_inp": "wan2.1-fun-inp-1.3b",
    "ti2v": "wan2.2-ti2v-5b",
    "vace": "wan2.1-vace-1.3b",
    "control": "wan2.1-fun-v1.1-control-1.3b",
    "camera": "wan2.1-fun-v1.1-control-camera-1.3b",
    "camera_two_experts": "wan2.2-fun-a14b-control-camera",
    "speed": "wan2.1-1.3b-speedcontrol-v1",
}
"""Family to card; the model of a family is `tiny_wan.tiny_<family>`."""

MORE_MODELS = {
    "plain": "wan-mini",
    "plain_flf2v": "wan-mini",
    "plain_t2v": "wan-mini",
    "plain_v2v": "wan-mini",
    "plain_two_experts": "wan2.2-i2v-a14b",
    "two_experts_v2v": "wan2.2-t2v-a14b",
    "speed_v2v": "wan2.1-1.3b-speedcontrol-v1",
    "ti2v_t2v": "wan2.2-ti2v-5b",
}
"""Further tasks of the same models, for the matrix of features."""

IMAGES = {
    "plain": ("input_image",),
    "plain_flf2v": ("input_image", "end_image"),
    "plain_two_experts": ("input_image",),
    "i2v": ("input_image",),
    "flf2v": ("input_image", "end_image"),
    "fun_inp": ("input_image", "end_image"),
    "ti2v": ("input_image",),
    "control": ("reference_image",),
    "camera": ("input_image",),
    "camera_two_experts": ("input_image",),
}
VIDEOS = {
    "v2v": "input_video",
    "plain_v2v": "input_video",
    "two_experts_v2v": "input_video",
    "speed_v2v": "input_video",
    "vace": "vace_video",
    "control": "control_video",
}
FIELDS: dict[str, dict] = {
    "t2i": {"num_frames": 1},
    "v2v": {"denoising_strength": 0.6},
    "camera": {"camera_direction": "LeftUp"},
    "camera_two_experts": {"camera_direction": "Right", "camera_speed": 0.05},
    "plain_v2v": {"denoising_strength": 0.6},
    "two_experts_v2v": {"denoising_strength": 0.6},
    "speed": {"motion_bucket_id": 100},
    "speed_v2v": {"motion_bucket_id": 0, "denoising_strength": 0.6},
}


def task(family: str, **fields) -> tuple[RenderRecipe, RenderInputs]:
    """A recipe and inputs for a family; 48x80 is 15 tokens a frame, which no degree divides."""
    size = {"width": 64, "height": 96} if family.startswith("ti2v") else {"width": 48, "height": 80}
    images = {role: picture(place + 2, **size) for place, role in enumerate(IMAGES.get(family, ()))}
    videos = {VIDEOS[family]: clip(9, **size)} if family in VIDEOS else {}
    recipe = RenderRecipe(
        **{
            "model": (MODELS | MORE_MODELS)[family], "weights_sha256": "ab" * 32, "prompt": "a dancer",
            "num_frames": 5, "num_inference_steps": 6, "seed": 3, **size, **FIELDS.get(family, {}), **fields,
            "images": tuple(ImageRef(role=role, sha256=image_sha256(image)) for role, image in images.items()),
            "videos": tuple(VideoRef(role=role, sha256=video_sha256(video)) for role, video in videos.items()),
        }
    )  # fmt: skip
    return recipe, RenderInputs(images=images, videos=videos)
