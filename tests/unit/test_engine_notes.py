"""Notes on inputs: what is cropped, cut off or left out of a picture or a video does not go unsaid."""

import numpy as np
import pytest
from PIL import Image

from sakuga.engine import RenderInputs
from sakuga.engine.notes import input_notes
from sakuga.recipe import RenderRecipe

RECIPE = RenderRecipe(model="m", weights_sha256="ab" * 32, prompt="x", seed=1, width=128, height=64, num_frames=5)


@pytest.mark.parametrize(
    ("size", "used"),
    [((256, 128), None), ((64, 32), None), ((255, 128), None), ((640, 480), "640x320"), ((480, 64), "128x64")],
)
def test_a_picture_of_another_shape_is_cropped_and_that_is_said(size, used):
    notes = input_notes(RECIPE, RenderInputs(images={"input_image": Image.new("RGB", size)}))
    expected = f"input_image is {size[0]}x{size[1]}, its middle {used} is used for 128x64"
    assert notes == ((expected,) if used else ())


def test_a_long_video_is_cut_and_that_is_said():
    videos = {"input_video": np.zeros((5, 64, 128, 3), np.uint8), "control_video": np.zeros((9, 64, 64, 3), np.uint8)}
    assert input_notes(RECIPE, RenderInputs(videos=videos)) == (
        "control_video has 9 frames, the first 5 are used",
        "control_video is 64x64, its middle 64x32 is used for 128x64",
    )


def test_what_the_reader_of_a_file_said_comes_first():
    inputs = RenderInputs(images={"input_image": Image.new("RGB", (9, 9))}, notes=("input_image: an animation",))
    assert input_notes(RECIPE, inputs)[0] == "input_image: an animation"
