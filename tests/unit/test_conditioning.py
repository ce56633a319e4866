"""Image conditioning equals DiffSynth's where DiffSynth has a case, and holds without an image."""

import numpy as np
import pytest
import torch
from diffsynth.pipelines.wan_video import WanVideoPipeline, WanVideoUnit_ImageEmbedderVAE
from PIL import Image

from sakuga.wan.conditioning import frame_mask, image_conditioning
from sakuga.wan.mini import MiniConfig


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    pipe = WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.vae = MiniConfig().build_vae()
    pipe.dit = MiniConfig().build_dit()
    return pipe


def encode_with(pipe):
    return lambda video_CTHW: pipe.vae.encode([video_CTHW], device="cpu")[0]


@pytest.mark.parametrize("num_frames", [5, 9])
@pytest.mark.parametrize("with_last", [False, True])
def test_equals_diffsynth_with_a_first_frame(pipe, num_frames, with_last):
    rng = np.random.default_rng(1)
    first, last = (Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(2))
    with torch.no_grad():
        stock = WanVideoUnit_ImageEmbedderVAE().process(
            pipe, first, last if with_last else None, num_frames, 32, 48, False, None, None
        )["y"]
        as_tensor = [pipe.preprocess_image(image)[0] for image in (first, last)]
        ours = image_conditioning(
            encode_with(pipe), as_tensor[0], as_tensor[1] if with_last else None,
            num_frames=num_frames, height=32, width=48,
        )  # fmt: skip
    assert torch.equal(ours, stock)


def test_without_an_image_the_mask_is_zero_and_the_video_grey(pipe):
    with torch.no_grad():
        y = image_conditioning(encode_with(pipe), None, None, num_frames=9, height=32, width=48)
        grey = encode_with(pipe)(torch.zeros(3, 9, 32, 48))
    assert y.shape == (1, 20, 3, 4, 6)
    assert torch.count_nonzero(y[:, :4]) == 0
    assert torch.equal(y[0, 4:], grey)


def test_mask_counts_the_first_frame_four_times():
    mask = frame_mask(9, 16, 16, first=True, last=True)
    assert mask.shape == (4, 3, 2, 2)
    assert mask[:, 0, 0, 0].tolist() == [1, 1, 1, 1]
    assert mask[:, 1, 0, 0].tolist() == [0, 0, 0, 0]
    assert mask[:, 2, 0, 0].tolist() == [0, 0, 0, 1]
