"""A render on several ranks is the render on one, for every family and step cache, also when it changes its plan."""

import numpy as np
import pytest

import rank_work
import tiny_wan
from families import MODELS, task
from ranks import Ranks
from sakuga.engine import LocalEngine, RenderInputs
from sakuga.parallel import ParallelPlan
from sakuga.recipe import StepCache

pytestmark = pytest.mark.dist

TOLERANCE = 1e-4
"""DESIGN's: maximum absolute error of the latents in fp32 between degrees."""
PLANS = [
    ParallelPlan(ulysses=2),
    ParallelPlan(ring=2),
    ParallelPlan(cfg=2),
    ParallelPlan(cfg=2, ulysses=2),
    ParallelPlan(ulysses=2, ring=2),
]


def alone(family: str, tokenizer_dir: str, recipe, inputs):
    engine = LocalEngine(getattr(tiny_wan, f"tiny_{family}")(tokenizer_dir))
    state = engine.start(recipe, inputs)
    while not state.is_done:
        state = engine.step(state)
    return state, engine.finish(state).frames_THWC


@pytest.mark.parametrize("family", MODELS)
def test_every_family_on_every_plan(family, world, tokenizer_dir):
    recipe, inputs = task(family)
    expected, frames = alone(family, tokenizer_dir, recipe, inputs)
    for plan in PLANS:
        answers = world(plan.world_size).run(rank_work.render_latents, plan, family, tokenizer_dir, recipe, inputs)
        for latents, num_blocks_run, video in answers:
            assert (latents - expected.latents_BCTHW).abs().max() < TOLERANCE, plan
            assert num_blocks_run == expected.num_blocks_run
            assert np.abs(video.astype(int) - frames).max() <= 1


@pytest.mark.parametrize("kind", ["teacache", "forecast"])
def test_every_step_cache_on_every_plan_and_from_one_to_another(kind, world, tokenizer_dir, tmp_path):
    """Rank 0 of the second half may have been another one in the first."""
    recipe, inputs = task("t2v", step_cache=StepCache(kind=kind, threshold_rel_l1=5.0), num_inference_steps=8)
    expected, _ = alone("t2v", tokenizer_dir, recipe, inputs)
    assert expected.num_blocks_run < 8 * 2 * 2
    for plan in PLANS:
        ranks = world(plan.world_size)
        path = tmp_path / f"{plan}.safetensors"
        whole = ranks.run(rank_work.render_latents, plan, "t2v", tokenizer_dir, recipe, inputs)
        parts = ranks.run(rank_work.render_latents, plan, "t2v", tokenizer_dir, recipe, inputs, (5, path))
        for (latents, num_blocks_run, _), (resumed, _, _) in zip(whole, parts, strict=True):
            assert (latents - expected.latents_BCTHW).abs().max() < TOLERANCE, plan
            assert num_blocks_run == expected.num_blocks_run
            assert (resumed == latents).all(), f"{plan}: a resume on the same plan gives the same bits"
        other = ParallelPlan(ring=2) if plan.world_size == 4 else ParallelPlan(cfg=2, ulysses=2)
        for latents in world(other.world_size).run(rank_work.resume_latents, other, "t2v", tokenizer_dir, path):
            assert (latents - expected.latents_BCTHW).abs().max() < TOLERANCE, f"{plan} to {other}"


@pytest.mark.parametrize(
    ("wishes", "decision", "step", "saved"),
    [
        (["go on", "pause"], "pause", 2, [2]),
        (["snapshot", "go on"], "go on", 4, [2]),
        (["pause", "cancel"], "cancel", 2, []),
    ],
)
def test_ranks_agree_before_they_act(wishes, decision, step, saved, world, tokenizer_dir):
    answers = world(2).run(rank_work.agreed, ParallelPlan(ulysses=2), tokenizer_dir, wishes)
    assert answers == [(decision, step, saved)] * 2


def test_an_error_of_rank_0_reaches_all_and_the_ranks_stay_usable(world, tokenizer_dir):
    recipe, _ = task("vace")
    answers = world(2).run(rank_work.refused, ParallelPlan(ulysses=2), "t2v", tokenizer_dir, recipe, RenderInputs())
    assert all(answer.startswith("E_MODEL") for answer in answers)
    recipe, inputs = task("t2v", guidance_scale=1.0)
    answers = world(2).run(rank_work.refused, ParallelPlan(cfg=2), "t2v", tokenizer_dir, recipe, inputs)
    assert answers == ["E_PLAN cfg 2 splits two branches, and with guidance_scale 1 there is one; take cfg 1 x ulysses 2 x ring 1"] * 2
    assert world(2).run(rank_work.refused, ParallelPlan(ulysses=2), "t2v", tokenizer_dir, recipe, inputs) == ["no error"] * 2


def test_the_others_say_which_rank_was_lost(tokenizer_dir, tmp_path):
    """In a world of their own, which is of no use afterwards."""
    ranks = Ranks(3, tmp_path)
    try:
        answers = ranks.run(rank_work.lose_a_rank, ParallelPlan(ring=3), tokenizer_dir, 1, without=1)
    finally:
        ranks.close()
    assert answers[0] == "E_RANK_LOST: rank 1 was lost in step 2; start new ranks"
    assert answers[1] == answers[0]


def test_a_rank_that_runs_out_of_memory_leaves_nobody_waiting(tokenizer_dir, tmp_path):
    ranks = Ranks(2, tmp_path)
    try:
        answers = ranks.run(rank_work.one_rank_fails, ParallelPlan(ulysses=2), tokenizer_dir, 1)
    finally:
        ranks.close()
    assert answers[0].startswith("E_RANK_LOST: rank 1 failed: a render of 32x32 and 5 frames does not fit into the memory")
    assert answers[1].startswith("E_MEMORY: a render of 32x32 and 5 frames does not fit")


def test_a_caches_decisions_are_those_of_one_process(world):
    """On trained weights and at a threshold that some steps pass and others do not."""
    recipe, inputs = rank_work.dancer()
    engine = LocalEngine.load("wan-mini")
    state = engine.start(recipe, inputs)
    while not state.is_done:
        state = engine.step(state)
    assert 0.3 < state.num_blocks_run / (12 * 2 * len(engine.model.pipe.dit.blocks)) < 0.9
    for plan in (ParallelPlan(ulysses=2), ParallelPlan(cfg=2)):
        for latents, num_blocks_run in world(2).run(rank_work.dance, plan):
            assert num_blocks_run == state.num_blocks_run
            assert (latents - state.latents_BCTHW).abs().max() < TOLERANCE
