"""Step caches in the engine: fewer blocks, memory that belongs to one render, and resume to the same bits."""

import pytest
import torch

from sakuga.engine import LocalEngine, RenderInputs
from sakuga.recipe import RenderRecipe, StepCache
from sakuga.wan.caching import KINDS
from tiny_wan import tiny_t2v, tiny_two_experts

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_STEPS = 8
THRESHOLD = 5.0
"""Random weights change much from step to step; only a rule that hardly ever computes shows its memory."""


@pytest.fixture
def engine(tokenizer_dir):
    return LocalEngine(tiny_t2v(tokenizer_dir))


def recipe(kind: str | None, threshold: float = THRESHOLD, refresh_every: int | None = None, **fields) -> RenderRecipe:
    cache = None
    if kind is not None:
        cache = StepCache(kind=kind, threshold_rel_l1=threshold, refresh_every=refresh_every)
    return RenderRecipe(
        **{
            "model": "wan2.1-t2v-1.3b", "weights_sha256": "ab" * 32, "prompt": "a dancer", "width": 32, "height": 32,
            "num_frames": 5, "num_inference_steps": NUM_STEPS, "seed": 1, "step_cache": cache, **fields,
        }
    )  # fmt: skip


def run(engine, state, until: int = NUM_STEPS):
    while state.step < until:
        state = engine.step(state)
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_left_out_and_counted(kind, engine):
    full = run(engine, engine.start(recipe(None), RenderInputs()))
    assert full.num_blocks_run == NUM_STEPS * 2 * 2  # steps, branches, blocks
    cached = run(engine, engine.start(recipe(kind), RenderInputs()))
    assert 2 * 2 * 2 <= cached.num_blocks_run < full.num_blocks_run
    assert not torch.equal(cached.latents_BCTHW, full.latents_BCTHW)
    video = engine.finish(cached)
    assert engine.receipt(cached.recipe, video)["num_blocks_run"] == cached.num_blocks_run


def test_a_threshold_that_never_skips_changes_no_bit(engine):
    """TeaCache's polynomial can be negative, which is below any threshold."""
    full = run(engine, engine.start(recipe(None), RenderInputs()))
    cached = run(engine, engine.start(recipe("forecast", threshold=1e-12), RenderInputs()))
    assert torch.equal(cached.latents_BCTHW, full.latents_BCTHW)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 4, NUM_STEPS - 1])
def test_a_snapshot_between_two_steps_goes_on_to_the_same_bits(kind, stop, engine, tokenizer_dir, tmp_path):
    state = engine.start(recipe(kind), RenderInputs())
    engine.snapshot(run(engine, state, stop), tmp_path / "state.safetensors")
    whole = run(engine, state)
    other = LocalEngine(tiny_t2v(tokenizer_dir))
    resumed = run(other, other.restore(tmp_path / "state.safetensors"))
    assert torch.equal(resumed.latents_BCTHW, whole.latents_BCTHW)
    assert resumed.num_blocks_run == whole.num_blocks_run


@pytest.mark.parametrize("kind", KINDS)
def test_renders_that_take_turns_keep_their_own_memory(kind, engine):
    wanted = [recipe(kind, seed=1), recipe(kind, seed=2, prompt="another"), recipe(None, seed=1)]
    alone = [run(engine, engine.start(each, RenderInputs())).latents_BCTHW for each in wanted]
    states = [engine.start(each, RenderInputs()) for each in wanted]
    for _ in range(NUM_STEPS):
        states = [engine.step(state) for state in states]
    for state, expected in zip(states, alone, strict=True):
        assert torch.equal(state.latents_BCTHW, expected)


def test_a_refresh_needs_no_memory(engine, tmp_path):
    state = run(engine, engine.start(recipe("forecast", refresh_every=4), RenderInputs()), 4)
    assert state.caches
    whole = run(engine, state)
    engine.snapshot(state, tmp_path / "light.safetensors")
    bare = engine.restore(tmp_path / "light.safetensors")
    assert not bare.caches
    assert torch.equal(run(engine, bare).latents_BCTHW, whole.latents_BCTHW)
    engine.snapshot(engine.step(state), tmp_path / "full.safetensors")
    assert engine.restore(tmp_path / "full.safetensors").caches


def test_the_other_expert_begins_with_an_empty_memory(tokenizer_dir):
    engine = LocalEngine(tiny_two_experts(tokenizer_dir))
    wanted = recipe("forecast", model="wan2.2-t2v-a14b", boundary_ratio=0.9)
    state = engine.start(wanted, RenderInputs())
    names = []
    while not state.is_done:
        state = engine.step(state)
        names.append(set(state.caches))
    assert names[0] == {"positive.0", "negative.0"}
    assert names[-1] == {"positive.1", "negative.1"}
    assert state.num_blocks_run >= 2 * 2 * 3, "each expert lays its own foundation"
