"""A render of any family that stops after a step and goes on in another engine gives the same bits."""

import dataclasses

import pytest
import torch

import tiny_wan
from families import MODELS, task
from sakuga.engine import LocalEngine
from sakuga.engine.state import Conditioning

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("family", MODELS)
def test_every_family_resumes_to_the_same_bits(family, tokenizer_dir, tmp_path):
    def engine() -> LocalEngine:
        return LocalEngine(getattr(tiny_wan, f"tiny_{family}")(tokenizer_dir))

    # Five steps of which the low-noise expert takes the later ones, so that a resume meets both.
    recipe, inputs = task(family, num_inference_steps=5)
    first, second, path = engine(), engine(), tmp_path / "state.safetensors"
    state = first.start(recipe, inputs)
    while not state.is_done:
        if state.step == 2:
            first.snapshot(state, path)
        state = first.step(state)
    resumed = second.restore(path, recipe)
    assert_same_conditioning(resumed.conditioning, state.conditioning)
    while not resumed.is_done:
        resumed = second.step(resumed)
    assert torch.equal(resumed.latents_BCTHW, state.latents_BCTHW)
    assert (second.finish(resumed).frames_THWC == first.finish(state).frames_THWC).all()


def assert_same_conditioning(ours: Conditioning, theirs: Conditioning) -> None:
    for field in dataclasses.fields(Conditioning):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert (one is None) == (other is None), field.name
        assert one is None or torch.equal(one, other), field.name


def test_the_families_use_all_that_a_conditioning_can_hold(tokenizer_dir):
    """A new kind of conditioning needs a family here, or nothing shows that it survives a snapshot."""
    used, fields = set(), dataclasses.fields(Conditioning)
    for family in MODELS:
        engine = LocalEngine(getattr(tiny_wan, f"tiny_{family}")(tokenizer_dir))
        conditioning = engine.start(*task(family, num_inference_steps=1)).conditioning
        used |= {field.name for field in fields if getattr(conditioning, field.name) is not None}
    assert used == {field.name for field in fields}
