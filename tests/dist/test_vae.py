"""The tiled VAE on several ranks gives the bits of DiffSynth's tiled VAE in one process.

Run: pytest tests/dist/test_vae.py
"""

import numpy as np
import pytest
import torch

import rank_work
from sakuga.engine import LocalEngine
from sakuga.media import image_sha256, video_sha256
from sakuga.parallel import ParallelPlan
from sakuga.parallel.vae import cut, tile_starts
from sakuga.recipe import ImageRef, RenderRecipe, Tiling, VideoRef
from stock_pipeline import clip, picture
from tiny_wan import tiny_control

pytestmark = pytest.mark.dist

PLANS = [ParallelPlan(cfg=2), ParallelPlan(ulysses=2, ring=2)]
TILINGS = {
    "fewer tiles than ranks": ({"tile_size": (8, 8), "tile_stride": (4, 4)}, 1),
    "six tiles, no share for 4": ({"tile_size": (4, 4), "tile_stride": (2, 3)}, 6),
    "nine tiles, no share for 2 or 4": ({"tile_size": (3, 3), "tile_stride": (2, 2)}, 9),
}
"""For latents of 7 x 6, or 8 x 8 for the first."""


@pytest.mark.parametrize(("length", "size", "stride"), [(90, 30, 15), (80, 30, 15), (20, 30, 15), (31, 30, 30), (5, 1, 1)])
def test_tiles_cover_a_side_and_none_is_idle(length, size, stride):
    starts = tile_starts(length, size, stride)
    assert starts == list(range(0, length, stride))[: len(starts)]
    assert starts[-1] + size >= length
    assert all(start + size < length for start in starts[:-1])


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2", "mini"])
def test_ranks_give_the_bits_of_one_process(kind, direction, tiling, world, seed):
    arguments, num_tiles = TILINGS[tiling]
    vae = rank_work.vae_of(kind)
    height, width = (8, 8) if num_tiles == 1 else (7, 6)
    factor = vae.upsampling_factor
    shape = (1, vae.z_dim, 2, height, width) if direction == "decode" else (1, 3, 5, height * factor, width * factor)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)
    assert len(cut(torch.zeros(1, 1, 1, height, width), *arguments.values())) == num_tiles
    expected = rank_work.through_vae(vae, direction, x, arguments)
    for plan in PLANS:
        answers = world(plan.world_size).run(rank_work.shared_vae, plan, kind, direction, x, arguments)
        assert all(torch.equal(result, expected) for result, _, _ in answers), plan
        shares = [num for _, num, _ in answers]
        assert sum(shares) == num_tiles
        assert max(shares) - min(shares) <= 1
        assert not any(left_behind for _, _, left_behind in answers)


def task(**fields) -> tuple[RenderRecipe, object]:
    """Every kind of input that the first stage encodes tiled."""
    from sakuga.engine import RenderInputs

    size = {"width": 48, "height": 80}
    videos, images = {"control_video": clip(9, **size)}, {"reference_image": picture(2, **size)}
    recipe = RenderRecipe(
        model="wan2.1-fun-v1.1-control-1.3b", weights_sha256="ab" * 32, prompt="a dancer", num_frames=5,
        num_inference_steps=2, seed=3, **size, **fields,
        images=tuple(ImageRef(role=role, sha256=image_sha256(image)) for role, image in images.items()),
        videos=tuple(VideoRef(role=role, sha256=video_sha256(video)) for role, video in videos.items()),
    )  # fmt: skip
    return recipe, RenderInputs(images=images, videos=videos)


TILING = Tiling(tile_height=6, tile_width=4, stride_height=4, stride_width=2)


@pytest.mark.parametrize("tiling", [None, TILING])
def test_a_render_on_ranks_is_the_render_on_one(tiling, world, tokenizer_dir):
    recipe, inputs = task(tiling=tiling)
    expected = LocalEngine(tiny_control(tokenizer_dir)).render(recipe, inputs).frames_THWC
    plan = ParallelPlan(cfg=2)  # each branch on the tokens of one process, so that frames have equal bits
    answers = world(2).run(rank_work.render_latents, plan, "control", tokenizer_dir, recipe, inputs)
    for _, _, frames in answers:
        assert np.array_equal(frames, expected)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("stage", ["start", "finish"])
def test_an_error_on_one_rank_reaches_all_and_the_ranks_stay_usable(stage, failing, world, tokenizer_dir):
    recipe, inputs = task(tiling=TILING)
    plan = ParallelPlan(cfg=2)
    answers = world(2).run(rank_work.vae_fails, plan, tokenizer_dir, recipe, inputs, stage, failing)
    assert answers == [f"Unpicklable: no room on rank {failing}"] * 2
    assert world(2).run(rank_work.vae_fails, plan, tokenizer_dir, recipe, inputs, stage, 9) == ["no error"] * 2
