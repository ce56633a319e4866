"""The engine on CUDA: the pipeline's own frames there, the CPU's frames up to rounding, and bf16 that stays finite.

Run on a machine with a CUDA device: pytest -m gpu tests/gpu     (elsewhere every test skips)
"""

import numpy as np
import pytest
import torch
from PIL import Image

from sakuga.engine import RenderInputs
from sakuga.synth import HELD_OUT_SEED, make_sample
from sakuga.wan.catalogue import card
from sakuga.wan.loading import load_model, locate
from stock_pipeline import assert_same, render, stock

pytestmark = pytest.mark.gpu

SIZE = {"width": 128, "height": 128, "num_frames": 17, "num_inference_steps": 8}
MAX_CPU_GAP = 2 / 255
"""Sums in another order: two levels where a value lies on the border between two, and next to nothing on average."""
MEAN_CPU_GAP = 0.1 / 255


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """cuDNN rounds the factors of a convolution to 10 bits unless told otherwise; fp32 here means fp32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    found = locate(card("wan-mini"), None, cache_dir=tmp_path_factory.mktemp("cache"))
    return lambda device, precision="fp32": load_model(found, device=device, precision=precision)


@pytest.fixture(scope="module")
def inputs():
    sample = make_sample(HELD_OUT_SEED, num_frames=1)
    return RenderInputs(images={"input_image": Image.fromarray(sample.input_image_HWC)})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frames_are_the_pipelines_own(load, inputs, precision):
    model = load("cuda", precision)
    recipe, ours = render(model, inputs, precision=precision, attention="sdpa", **SIZE)
    assert_same(ours, stock(model, recipe, input_image=inputs.images["input_image"]))


def test_the_gpu_renders_what_the_cpu_renders(load, inputs):
    on_gpu = render(load("cuda"), inputs, attention="sdpa", **SIZE)[1]
    on_cpu = render(load("cpu"), inputs, attention="sdpa", **SIZE)[1]
    gap = np.abs(on_gpu.astype(int) - on_cpu) / 255
    assert gap.max() <= MAX_CPU_GAP
    assert gap.mean() <= MEAN_CPU_GAP


def test_bf16_is_finite_and_shows_the_same_dancer(load, inputs):
    # The engine raises NumericsError for latents that are not finite.
    half = render(load("cuda", "bf16"), inputs, precision="bf16", **SIZE)[1]
    full = render(load("cuda"), inputs, **SIZE)[1]
    assert half.std() > 1
    far = np.abs(full.astype(int) - full[:, :, ::-1]).mean()
    assert np.abs(half.astype(int) - full).mean() < far, "closer to fp32 than its mirror image is"


def test_same_recipe_same_bits(load, inputs):
    model = load("cuda")
    assert np.array_equal(render(model, inputs, **SIZE)[1], render(model, inputs, **SIZE)[1])
