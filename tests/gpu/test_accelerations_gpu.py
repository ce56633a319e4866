"""Accelerations on one CUDA device: what is the plain render to the bit, and how far the others are from it.

Run on a machine with a CUDA device: pytest -m gpu tests/gpu     (elsewhere every test skips)
"""

import numpy as np
import pytest
import torch

from sakuga.engine import LocalEngine, RenderInputs
from sakuga.engine.plan import ExecutionPlan
from sakuga.quality import psnr
from sakuga.wan.catalogue import card
from sakuga.wan.loading import load_model, locate
from sakuga.wan.memory import MemoryPlan
from stock_pipeline import picture, render

pytestmark = pytest.mark.gpu

SIZE = {"width": 128, "height": 128, "num_frames": 9, "num_inference_steps": 6, "precision": "bf16"}
INPUTS = RenderInputs(images={"input_image": picture(4, 128, 128)})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return locate(card("wan-mini"), None, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def plain(weights):
    return render(load_model(weights, device="cuda", precision="bf16"), INPUTS, **(SIZE | {"attention": "sdpa"}))


def frames(weights, recipe, precision: str = "bf16", **plan) -> np.ndarray:
    execution = ExecutionPlan(allow_unverified=True, **plan)
    model = load_model(weights, device="cuda", precision=precision, memory=execution.memory)
    return LocalEngine(model, execution).render(recipe, INPUTS).frames_THWC


@pytest.mark.parametrize("memory", ["components", "layers:2MB", "disk"])
def test_memory_plans_change_no_bit(memory, weights, plain):
    """`layers` copies the next block on a stream of its own while one computes: a race would show here."""
    recipe, expected = plain
    for _ in range(3):
        assert np.array_equal(frames(weights, recipe, memory=MemoryPlan.parse(memory)), expected)


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "fp8", "fp8-dynamic"])
def test_quantized_weights_stay_close(precision, weights, plain):
    from dataclasses import replace

    if precision == "fp8-dynamic" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not multiply fp8")
    recipe, expected = plain
    assert psnr(expected, frames(weights, replace(recipe, precision=precision), precision)).pooled_db > 25


def test_compiled_blocks_stay_close(weights, plain):
    recipe, expected = plain
    assert psnr(expected, frames(weights, recipe, compile=True)).pooled_db > 35


def test_auto_takes_a_kernel_that_agrees_with_fp32(weights):
    model = load_model(weights, device="cuda", precision="bf16")
    engine = LocalEngine(model)
    recipe, _ = render(model, INPUTS, **SIZE)
    video = engine.render(recipe, INPUTS)
    report = engine.receipt(recipe, video)["attention"]
    assert report["asked"] == "auto" and report["used"] in {row["name"] for row in report["trials"]}
    assert all(row.get("relative_error", 1) <= 2e-2 for row in report["trials"] if "refused" not in row)
