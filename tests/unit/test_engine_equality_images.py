"""Frames of `WanVideoPipeline.__call__` for models with CLIP, with a camera and with speed control, and for pictures.

As in `test_engine_equality.py`, at most 1/255 apart.
"""

import numpy as np
import pytest
import torch

from sakuga.engine import RenderInputs
from stock_pipeline import as_images, assert_same, clip, picture, render, stock
from tiny_wan import (
    TinyClip,
    tiny_camera,
    tiny_camera_two_experts,
    tiny_control,
    tiny_flf2v,
    tiny_fun_inp,
    tiny_i2v,
    tiny_speed,
    tiny_t2v,
    tiny_ti2v,
    tiny_two_experts,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def of_images(**images) -> RenderInputs:
    return RenderInputs(images=images)


@pytest.mark.parametrize("fields", [{}, {"guidance_scale": 1.0, "num_frames": 9}], ids=["guided", "unguided, longer"])
def test_image_to_video_with_clip(fields, tokenizer_dir):
    model, image = tiny_i2v(tokenizer_dir), picture(4)
    recipe, ours = render(model, of_images(input_image=image), **fields)
    assert_same(ours, stock(model, recipe, input_image=image))


def test_clip_has_an_effect(tokenizer_dir):
    """Else the equality above would say nothing of it."""
    model, inputs = tiny_i2v(tokenizer_dir), of_images(input_image=picture(4))
    with_clip = render(model, inputs)[1]
    model.pipe.image_encoder = None
    assert not np.array_equal(with_clip, render(model, inputs)[1])


def test_first_and_last_frame_with_both_in_clip(tokenizer_dir):
    model, first, last = tiny_flf2v(tokenizer_dir), picture(4), picture(5)
    recipe, ours = render(model, of_images(input_image=first, end_image=last))
    assert_same(ours, stock(model, recipe, input_image=first, end_image=last))


@pytest.mark.parametrize("with_end", [True, False])
def test_fun_inp(with_end, tokenizer_dir):
    model, images = tiny_fun_inp(tokenizer_dir), {"input_image": picture(4)}
    images |= {"end_image": picture(5)} if with_end else {}
    recipe, ours = render(model, of_images(**images))
    assert_same(ours, stock(model, recipe, **images))


def test_reference_image_of_control_goes_through_clip(tokenizer_dir):
    model, video, reference = tiny_control(tokenizer_dir), clip(9), picture(2)
    torch.manual_seed(0)
    model.pipe.image_encoder = TinyClip().eval().requires_grad_(False)
    recipe, ours = render(model, RenderInputs(images={"reference_image": reference}, videos={"control_video": video}))
    assert_same(ours, stock(model, recipe, control_video=as_images(video), reference_image=reference))


@pytest.mark.parametrize(
    ("tiny", "direction", "speed"),
    [
        (tiny_camera, "Left", None),
        (tiny_camera, "RightDown", 0.1),
        (tiny_camera_two_experts, "Up", 0.01),
        (tiny_camera_two_experts, "LeftUp", None),
    ],
)
def test_camera(tiny, direction, speed, tokenizer_dir):
    model, image = tiny(tokenizer_dir), picture(4)
    fields = {"num_inference_steps": 6, "guidance_scale": 2.0} if model.card.two_experts else {}
    recipe, ours = render(
        model, of_images(input_image=image), camera_direction=direction, camera_speed=speed, num_frames=9, **fields
    )
    arguments = {"camera_control_direction": direction} | ({} if speed is None else {"camera_control_speed": speed})
    if model.card.two_experts:
        arguments["switch_DiT_boundary"] = 0.9
    assert_same(ours, stock(model, recipe, input_image=image, **arguments))


def test_direction_and_speed_of_the_camera_have_an_effect(tokenizer_dir):
    model, inputs = tiny_camera(tokenizer_dir), of_images(input_image=picture(4))
    paths = [("Left", 0.1), ("Right", 0.1), ("Left", 0.5)]
    videos = [render(model, inputs, camera_direction=to, camera_speed=speed)[1] for to, speed in paths]
    assert len({video.tobytes() for video in videos}) == len(paths)


@pytest.mark.parametrize("motion_bucket_id", [None, 0, 37, 100])
def test_speed_control(motion_bucket_id, tokenizer_dir):
    model = tiny_speed(tokenizer_dir)
    recipe, ours = render(model, motion_bucket_id=motion_bucket_id)
    assert_same(ours, stock(model, recipe, motion_bucket_id=motion_bucket_id))


def test_speed_has_an_effect(tokenizer_dir):
    model = tiny_speed(tokenizer_dir)
    videos = [render(model, motion_bucket_id=speed)[1] for speed in (None, 0, 100)]
    assert len({video.tobytes() for video in videos}) == 3


@pytest.mark.parametrize("tiny", [tiny_t2v, tiny_two_experts, tiny_ti2v, tiny_speed])
def test_text_to_image_is_a_video_of_one_frame(tiny, tokenizer_dir):
    model = tiny(tokenizer_dir)
    recipe, ours = render(model, num_frames=1, width=32, height=64)
    assert ours.shape == (1, 64, 32, 3)
    boundary = {"switch_DiT_boundary": model.card.boundary_ratio} if model.card.two_experts else {}
    assert_same(ours, stock(model, recipe, **boundary))


@pytest.mark.parametrize("tiny", [tiny_i2v, tiny_camera, tiny_control])
def test_one_frame_of_models_that_take_more_than_text(tiny, tokenizer_dir):
    model, image, video = tiny(tokenizer_dir), picture(4), clip(9, num_frames=1)
    if tiny is tiny_control:
        recipe, ours = render(model, RenderInputs(videos={"control_video": video}), num_frames=1)
        assert_same(ours, stock(model, recipe, control_video=as_images(video)))
        return
    fields = {"camera_direction": "Left"} if tiny is tiny_camera else {}
    recipe, ours = render(model, of_images(input_image=image), num_frames=1, **fields)
    arguments = {"camera_control_direction": "Left"} if fields else {}
    assert_same(ours, stock(model, recipe, input_image=image, **arguments))
