"""The embedded Wan-mini at the size that people render: the pipeline's own frames, and every geometry moves.

The unit tests hold the same at 32x48 with 5 frames, on random weights.     Run: pytest -m slow tests/proof
"""

import numpy as np
import pytest
from PIL import Image

from sakuga.engine import RenderInputs
from sakuga.quality import motion
from sakuga.synth import HELD_OUT_SEED, make_sample
from sakuga.wan.catalogue import card
from sakuga.wan.loading import load_model, locate
from stock_pipeline import assert_same, render, stock

pytestmark = pytest.mark.slow

FULL = {"width": 128, "height": 128, "num_frames": 33, "num_inference_steps": 20}
MIN_MOTION = 0.01


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(locate(card("wan-mini"), None, cache_dir=tmp_path_factory.mktemp("cache")))


def first_frame(width: int = 128, height: int = 128) -> RenderInputs:
    sample = make_sample(HELD_OUT_SEED, width=width, height=height, num_frames=1)
    return RenderInputs(images={"input_image": Image.fromarray(sample.input_image_HWC)})


def test_image_to_video_is_the_pipelines_own(model):
    inputs = first_frame()
    recipe, ours = render(model, inputs, **FULL)
    assert_same(ours, stock(model, recipe, input_image=inputs.images["input_image"]))


@pytest.mark.parametrize(
    ("width", "height", "num_frames"),
    [(128, 128, 17), (128, 128, 77), (96, 160, 33), (160, 96, 33)],
    ids=["short", "long", "portrait", "landscape"],
)
def test_every_geometry_begins_with_the_image_and_moves(model, width, height, num_frames):
    inputs = first_frame(width, height)
    size = {"width": width, "height": height, "num_frames": num_frames}
    _, frames_THWC = render(model, inputs, **{**FULL, **size})
    assert frames_THWC.shape == (num_frames, height, width, 3)
    # Pixels per frame over the whole picture: a still has 0, this seed's true videos 0.06 (landscape) to 0.13 (short).
    assert motion(frames_THWC) > MIN_MOTION
    begin = np.asarray(inputs.images["input_image"]).astype(int)
    near, far = (np.abs(frames_THWC[index] - begin).mean() for index in (0, -1))
    assert near < far, "the image stands at the beginning"
