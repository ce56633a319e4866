"""The engine's frames are those of `WanVideoPipeline.__call__`, at most 1/255 apart, for every kind of render.

The loop, the schedule, the guidance and the frame conversion are ours; a mistake in any of them shows here.
"""

import numpy as np
import pytest
import torch

from sakuga.engine import RenderInputs
from sakuga.recipe import Tiling
from sakuga.wan import mini
from sakuga.wan.catalogue import card
from sakuga.wan.loading import load_model, locate
from stock_pipeline import as_images, assert_same, clip, picture, render, stock
from tiny_wan import tiny_control, tiny_t2v, tiny_ti2v, tiny_two_experts, tiny_vace

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def mini_folder(tmp_path_factory):
    return mini.random_weights(tmp_path_factory.mktemp("weights") / "mini", seed=7)


@pytest.fixture(scope="module")
def tokenizer_dir(mini_folder):
    return mini_folder / "tokenizer"


@pytest.fixture(scope="module")
def mini_model(mini_folder, tmp_path_factory):
    return load_model(locate(card("wan-mini"), mini_folder, cache_dir=tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guidance_scale": 1.0},
        {"flow_shift": 3.0, "guidance_scale": 7.5, "num_inference_steps": 5},
        {"seed": 2**63 - 1},
    ],
    ids=["guided", "unguided", "shift", "largest seed"],
)
def test_text_to_video(fields, tokenizer_dir):
    model = tiny_t2v(tokenizer_dir)
    recipe, ours = render(model, **fields)
    assert_same(ours, stock(model, recipe))


def test_another_seed_is_another_video(tokenizer_dir):
    model = tiny_t2v(tokenizer_dir)
    assert not np.array_equal(render(model, seed=1)[1], render(model, seed=2)[1])


@pytest.mark.parametrize("strength", [0.4, 0.7, 1.0])
def test_video_to_video(strength, tokenizer_dir):
    model, video = tiny_t2v(tokenizer_dir), clip(3)
    recipe, ours = render(model, RenderInputs(videos={"input_video": video}), denoising_strength=strength)
    assert_same(ours, stock(model, recipe, input_video=as_images(video)))


def test_tiles_of_the_vae(tokenizer_dir):
    model = tiny_t2v(tokenizer_dir)
    tiling = Tiling(tile_height=4, tile_width=3, stride_height=2, stride_width=2)
    recipe, ours = render(model, tiling=tiling)
    assert_same(ours, stock(model, recipe, tiled=True, tile_size=(4, 3), tile_stride=(2, 2)))
    assert not np.array_equal(ours, render(model)[1])


@pytest.mark.parametrize("boundary", [0.3, 0.875, 0.97])
def test_two_experts_switch_at_the_boundary(boundary, tokenizer_dir):
    model = tiny_two_experts(tokenizer_dir)
    recipe, ours = render(model, boundary_ratio=boundary, num_inference_steps=6)
    assert_same(ours, stock(model, recipe, switch_DiT_boundary=boundary))


def test_default_boundary_is_that_of_the_card(tokenizer_dir):
    model = tiny_two_experts(tokenizer_dir)
    recipe, ours = render(model, num_inference_steps=6)
    assert_same(ours, stock(model, recipe, switch_DiT_boundary=0.875))


def test_second_guidance_counts_for_the_low_noise_expert_only(tokenizer_dir):
    model = tiny_two_experts(tokenizer_dir)
    never, always = {"boundary_ratio": 0.0}, {"boundary_ratio": 1.0}
    one = render(model, guidance_scale=4.0, guidance_scale_2=2.0, **never)[1]
    assert np.array_equal(one, render(model, guidance_scale=4.0, **never)[1])
    # At boundary 1 only the first step, whose timestep is 1000 itself, is the high-noise expert's.
    two = render(model, guidance_scale=4.0, guidance_scale_2=2.0, **always)[1]
    assert not np.array_equal(two, render(model, guidance_scale=4.0, **always)[1])


@pytest.mark.parametrize("with_image", [True, False])
def test_ti2v_keeps_the_first_frame_in_the_latents(with_image, tokenizer_dir):
    model = tiny_ti2v(tokenizer_dir)
    size = {"width": 32, "height": 64}
    image = picture(5, **size)
    inputs = RenderInputs(images={"input_image": image} if with_image else {})
    recipe, ours = render(model, inputs, **size)
    assert_same(ours, stock(model, recipe, input_image=image if with_image else None))


@pytest.mark.parametrize("with_reference", [True, False])
def test_control_video(with_reference, tokenizer_dir):
    model, video, reference = tiny_control(tokenizer_dir), clip(9), picture(2)
    images = {"reference_image": reference} if with_reference else {}
    recipe, ours = render(model, RenderInputs(images=images, videos={"control_video": video}))
    arguments = {"control_video": as_images(video), "reference_image": reference if with_reference else None}
    assert_same(ours, stock(model, recipe, **arguments))


@pytest.mark.parametrize("what", ["video", "video and mask", "reference", "video and reference"])
def test_vace(what, tokenizer_dir):
    model, video = tiny_vace(tokenizer_dir), clip(9)
    mask = np.zeros_like(video)
    mask[:, 16:32, 8:24] = 255
    reference = picture(2)
    videos = {"vace_video": video} if "video" in what else {}
    videos |= {"vace_mask": mask} if "mask" in what else {}
    images = {"reference_image": reference} if "reference" in what else {}
    recipe, ours = render(model, RenderInputs(images=images, videos=videos))
    theirs = stock(
        model,
        recipe,
        vace_video=as_images(video) if "video" in what else None,
        vace_video_mask=as_images(mask) if "mask" in what else None,
        vace_reference_image=[reference] if "reference" in what else None,
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "fields", [{}, {"guidance_scale": 1.0}, {"num_frames": 9}], ids=["guided", "unguided", "longer"]
)
def test_image_to_video_on_wan_mini(fields, mini_model):
    image = picture(4)
    recipe, ours = render(mini_model, RenderInputs(images={"input_image": image}), **fields)
    assert_same(ours, stock(mini_model, recipe, input_image=image))


def test_first_and_last_frame_to_video_on_wan_mini(mini_model):
    first, last = picture(4), picture(5)
    recipe, ours = render(mini_model, RenderInputs(images={"input_image": first, "end_image": last}))
    assert_same(ours, stock(mini_model, recipe, input_image=first, end_image=last))
    without = render(mini_model, RenderInputs(images={"input_image": first}))[1]
    assert not np.array_equal(ours, without)


def test_text_to_video_on_wan_mini_where_the_pipeline_has_no_such_case(mini_model):
    recipe, ours = render(mini_model)
    assert ours.shape == (5, 48, 32, 3)
    with pytest.raises(RuntimeError, match="channels"):
        stock(mini_model, recipe)


def test_same_recipe_same_bits(mini_model):
    inputs = RenderInputs(images={"input_image": picture(4)})
    assert np.array_equal(render(mini_model, inputs)[1], render(mini_model, inputs)[1])


def test_a_large_image_is_fitted_before_it_is_encoded(mini_model):
    from sakuga.media import fit_image

    large = picture(4, 301, 200)
    ours = render(mini_model, RenderInputs(images={"input_image": large}))[1]
    fitted = render(mini_model, RenderInputs(images={"input_image": fit_image(large, 32, 48)}))[1]
    assert np.array_equal(ours, fitted)


def test_schedule_is_that_of_diffsynth():
    from diffsynth.diffusion import FlowMatchScheduler

    from sakuga.engine.schedule import euler_step, noise_levels

    scheduler = FlowMatchScheduler("Wan")
    for num_steps, shift, strength in ((1, 5.0, 1.0), (20, 5.0, 1.0), (50, 12.0, 1.0), (7, 3.0, 0.35)):
        scheduler.set_timesteps(num_steps, denoising_strength=strength, shift=shift)
        sigmas = noise_levels(num_steps, shift=shift, denoising_strength=strength)
        assert torch.equal(sigmas[:-1], scheduler.sigmas)
        latents, velocity = torch.randn(2, 3), torch.randn(2, 3)
        for step, timestep in enumerate(scheduler.timesteps):
            theirs = scheduler.step(velocity, timestep, latents)
            assert torch.equal(euler_step(latents, velocity, sigmas[step], sigmas[step + 1]), theirs)
