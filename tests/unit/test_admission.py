"""Renders that will not fit are refused before they begin, and stages that run on engines of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sakuga.engine import LocalEngine, RenderInputs
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.resolve import resolve
from sakuga.errors import MemoryLimitError, PlanError
from sakuga.recipe import parse_request
from sakuga.wan.memory import MemoryPlan

REQUEST = {"prompt": "A dancer.", "num_inference_steps": 3, "num_frames": 5, "seed": 1, "loras": "fairy"}


@pytest.fixture(scope="module")
def whole():
    return LocalEngine.load("wan-mini")


@pytest.fixture(scope="module")
def case(whole):
    recipe, inputs, _ = resolve(parse_request(REQUEST), whole.card, Path())
    return recipe, inputs


@pytest.mark.parametrize("memory", ["resident", "components", "disk"])
def test_encode_denoise_and_decode_on_engines_of_their_own(memory, whole, case, tmp_path):
    recipe, inputs = case
    plan = ExecutionPlan(memory=MemoryPlan.parse(memory))
    expected = whole.render(recipe, inputs).frames_THWC
    encoder, denoiser, decoder = (
        LocalEngine.load("wan-mini", execution=plan, stages=(stage,)) for stage in ("encode", "denoise", "decode")
    )
    assert all(parameter.is_meta for parameter in encoder.model.pipe.dit.parameters())
    assert all(parameter.is_meta for parameter in denoiser.model.pipe.text_encoder.parameters())
    assert not any(parameter.is_meta for parameter in decoder.model.pipe.vae.parameters())
    encoder.snapshot(encoder.start(recipe, inputs), tmp_path / "encoded.safetensors")
    denoiser.add_loras(inputs.lora_paths)
    state = denoiser.restore(tmp_path / "encoded.safetensors", recipe)
    while not state.is_done:
        state = denoiser.step(state)
    denoiser.snapshot(state, tmp_path / "denoised.safetensors")
    decoded = decoder.finish(decoder.restore(tmp_path / "denoised.safetensors", recipe))
    assert np.array_equal(decoded.frames_THWC, expected)


def test_an_engine_names_the_stage_that_it_lacks(whole, case):
    recipe, inputs = case
    encoder = LocalEngine.load("wan-mini", stages=("encode",))
    state = encoder.start(recipe, inputs)
    with pytest.raises(PlanError, match="loaded for encode only; give the state to one that does denoise"):
        encoder.step(state)
    with pytest.raises(PlanError, match="does decode"):
        encoder.preview(state)
    with pytest.raises(PlanError, match="does encode"):
        LocalEngine.load("wan-mini", stages=("denoise",)).start(recipe, inputs)


def test_a_render_that_will_not_fit_is_refused_and_the_engine_goes_on(whole, case):
    recipe, inputs = case
    small = LocalEngine(whole.model, memory_bytes=60_000_000)
    with pytest.raises(MemoryLimitError, match=r"of wan-mini in fp32 need .* MB to .*; cpu has 60 MB"):
        small.start(recipe, inputs)
    small.memory_bytes = 4_000_000_000
    assert small.start(recipe, inputs).latents_BCTHW.isfinite().all()


def test_running_out_of_memory_in_a_step_is_an_error_and_the_engine_goes_on(whole, case):
    """Simulated: PyTorch raises the same in the middle of a block."""
    recipe, inputs = case
    expected = whole.render(recipe, inputs).frames_THWC
    state = whole.start(recipe, inputs)

    def exhausted(*_):
        raise torch.OutOfMemoryError("simulated")

    hook = whole.model.pipe.dit.blocks[2].norm2.register_forward_pre_hook(exhausted)
    with pytest.raises(MemoryLimitError, match="does not fit into the memory of cpu"):
        whole.step(state)
    hook.remove()
    while not state.is_done:
        state = whole.step(state)
    assert np.array_equal(whole.finish(state).frames_THWC, expected)


def test_a_lora_that_did_not_fit_leaves_no_half_of_it_behind(whole, case, monkeypatch):
    recipe, inputs = case
    plain, _, _ = resolve(parse_request(REQUEST | {"loras": []}), whole.card, Path())
    expected = whole.render(plain, RenderInputs()).frames_THWC
    fuse, calls = type(whole._loras)._fuse, []

    def exhausted(self, *args):
        calls.append(args)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("simulated")
        fuse(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(type(whole._loras), "_fuse", exhausted)
        with pytest.raises(MemoryLimitError):
            whole.start(recipe, inputs)
    assert np.array_equal(whole.render(plain, RenderInputs()).frames_THWC, expected)
