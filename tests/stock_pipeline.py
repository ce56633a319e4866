"""Our engine and `WanVideoPipeline.__call__` on one recipe, for tests that hold the one to the other.

Shapes: T frames, H height, W width, C = 3, RGB uint8.
"""

import numpy as np
from PIL import Image

from sakuga.engine import LocalEngine, RenderInputs
from sakuga.media import image_sha256, video_sha256
from sakuga.recipe import ImageRef, RenderRecipe, VideoRef
from sakuga.wan.attention import attention

SIZE = {"width": 32, "height": 48, "num_frames": 5, "num_inference_steps": 3}


def picture(seed: int, width: int = 32, height: int = 48) -> Image.Image:
    """A smooth random picture: noise alone would be all the same to a VAE."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def clip(seed: int, num_frames: int = 5, width: int = 32, height: int = 48) -> np.ndarray:
    return np.stack([np.asarray(picture(seed + frame, width, height)) for frame in range(num_frames)])


def render(model, inputs: RenderInputs | None = None, **fields) -> tuple[RenderRecipe, np.ndarray]:
    """Recipe and frames of our engine."""
    inputs = inputs or RenderInputs()
    recipe = RenderRecipe(
        model=model.card.name,
        weights_sha256=model.weights_sha256,
        prompt="a dancer in a red dress, spinning",
        negative_prompt="blurred",
        images=tuple(ImageRef(role=role, sha256=image_sha256(image)) for role, image in inputs.images.items()),
        videos=tuple(VideoRef(role=role, sha256=video_sha256(video)) for role, video in inputs.videos.items()),
        **{"seed": 11, **SIZE, **fields},
    )
    return recipe, LocalEngine(model).render(recipe, inputs).frames_THWC


def stock(model, recipe: RenderRecipe, **arguments) -> np.ndarray:
    """Frames of the pipeline's own `__call__`."""
    with attention("sdpa"):
        frames = model.pipe(
            prompt=recipe.prompt,
            negative_prompt=recipe.negative_prompt,
            seed=recipe.seed,
            width=recipe.width,
            height=recipe.height,
            num_frames=recipe.num_frames,
            num_inference_steps=recipe.num_inference_steps,
            cfg_scale=recipe.guidance_scale,
            sigma_shift=recipe.flow_shift,
            denoising_strength=recipe.denoising_strength,
            progress_bar_cmd=lambda steps: steps,
            **({"tiled": False} | arguments),
        )
    return np.stack([np.asarray(frame) for frame in frames])


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert ours.std() > 1, "a flat video would be equal for the wrong reasons"


def as_images(video: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in video]
