"""TeaCache's calibration sees what its rule sees, and finds a polynomial that is there."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from sakuga.engine import LocalEngine, RenderInputs
from sakuga.engine.calibrate import MIN_STEPS, ObservingEngine, calibrate_cache, drawn_tasks, fit_changes
from sakuga.errors import InputError
from sakuga.recipe import RenderRecipe, StepCache
from sakuga.wan import caching
from sakuga.wan.caching import polynomial
from sakuga.wan.catalogue import card, cards
from sakuga.wan.mini import random_weights
from tiny_wan import tiny_t2v, tiny_two_experts

NUM_STEPS = 8


def recipe(**fields) -> RenderRecipe:
    return RenderRecipe(
        **{
            "model": "wan2.1-t2v-1.3b", "weights_sha256": "ab" * 32, "prompt": "a dancer", "width": 32, "height": 32,
            "num_frames": 5, "num_inference_steps": NUM_STEPS, "seed": 1, **fields,
        }
    )  # fmt: skip


def test_a_polynomial_that_is_there_is_found(seed):
    wanted = (-3.0, 2.0, 0.5, 1.5, 0.01)
    x = np.random.default_rng(seed).uniform(0.01, 2, 200)
    fit = fit_changes([(value, polynomial(wanted, value)) for value in x])
    assert fit.coefficients == pytest.approx(wanted, rel=1e-6)
    assert fit.r_squared == pytest.approx(1)
    assert fit.mean_rel_error < 1e-9
    assert fit.input_changes == (x.min(), x.max())


def test_the_fit_says_how_good_it_is(seed):
    """Noise of the size of the signal's deviation explains half of the variance."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(0, 1, 20_000)
    y = 5 + x + generator.normal(0, x.std(), len(x))
    fit = fit_changes(list(zip(x, y, strict=True)))
    assert fit.r_squared == pytest.approx(0.5, abs=0.03)
    assert polynomial(fit.coefficients, 0.5) == pytest.approx(5.5, abs=0.05)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_pairs_are_what_the_rule_sees(guidance, tokenizer_dir, monkeypatch):
    """TeaCache itself, of a threshold that skips nothing, hands the same numbers to its polynomial."""
    observing = ObservingEngine(tiny_t2v(tokenizer_dir))
    observing.observe(recipe(guidance_scale=guidance), RenderInputs())
    seen = []

    def spy(coefficients: tuple[float, ...], x: float) -> float:
        seen.append(x)
        return 10.0

    monkeypatch.setattr(caching, "polynomial", spy)
    engine = LocalEngine(tiny_t2v(tokenizer_dir))
    cache = StepCache(kind="teacache", threshold_rel_l1=1.0)
    engine.render(recipe(guidance_scale=guidance, step_cache=cache), RenderInputs())
    branches = 1 if guidance == 1 else 2
    assert len(seen) == (NUM_STEPS - 2) * branches
    assert [pair[0] for pair in observing.pairs] == seen


def test_output_changes_are_those_of_the_residual(tokenizer_dir):
    """Against a walk over the steps by hand, and a full render's latents are not touched by being observed."""
    engine, observing = LocalEngine(tiny_t2v(tokenizer_dir)), ObservingEngine(tiny_t2v(tokenizer_dir))
    state, residuals = engine.start(recipe(guidance_scale=1.0), RenderInputs()), []
    while not state.is_done:
        timestep = state.sigmas[state.step] * 1000
        with torch.no_grad():
            step = engine._evaluation(state, "positive", timestep, low_noise=False)
            residuals.append(step.after_all_blocks() - step.embedded())
        state = engine.step(state)
    changes = [float((new - old).abs().mean() / old.abs().mean()) for old, new in pairwise(residuals[:-1])]
    watched = observing.start(recipe(guidance_scale=1.0), RenderInputs())
    while not watched.is_done:
        watched = observing.step(watched)
    assert [pair[1] for pair in observing.pairs] == pytest.approx(changes)
    assert torch.equal(watched.latents_BCTHW, state.latents_BCTHW)


def test_no_pair_spans_two_experts(tokenizer_dir):
    observing = ObservingEngine(tiny_two_experts(tokenizer_dir))
    observing.observe(recipe(model="wan2.2-t2v-a14b", guidance_scale=1.0), RenderInputs())
    assert len(observing.pairs) == NUM_STEPS - 3  # not the first and the last, nor the first of the other expert


def test_too_few_steps_are_refused_before_any_render(tokenizer_dir):
    observing = ObservingEngine(tiny_t2v(tokenizer_dir))
    tasks = [(recipe(num_inference_steps=steps), RenderInputs()) for steps in (MIN_STEPS, MIN_STEPS - 1)]
    with pytest.raises(InputError, match=r"6 steps .* take 7 or more"):
        calibrate_cache(observing, tasks)
    assert observing.pairs == []


def test_drawn_dancers_come_from_text_and_from_an_image():
    tasks = drawn_tasks(card("wan-mini"), "ab" * 32, 2, [50, 20])
    assert len(tasks) == 8
    assert sum(bool(inputs.images) for _, inputs in tasks) == 4
    assert {recipe.num_inference_steps for recipe, _ in tasks} == {50, 20}
    assert len({recipe.render_key for recipe, _ in tasks}) == 8


def run_cli(capsys, *arguments):
    from sakuga.cli.main import run

    code = run(["calibrate", "cache", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    weights = random_weights(tmp_path / "mini")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("pink twin tails\n\nsilver hair\n")
    small = ["--prompts", str(prompts), "--weights", str(weights), "--steps", "7", "--out", str(tmp_path / "a.json")]
    code, payload = run_cli(capsys, *small)
    assert code == 0
    assert json.loads((tmp_path / "a.json").read_text()) == payload
    assert payload["num_renders"] == 2
    assert payload["num_pairs"] == 2 * 5 * 2  # renders, steps, branches
    assert len(payload["coefficients"]) == 5
    assert payload["num_inference_steps"] == [7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "wan2.1-t2v-1.3b"], "give --prompts FILE"),
        (["--image", "x.png"], "--image goes with --prompts"),
        (["--prompts", "nowhere.txt"], "cannot be read"),
    ],
)
def test_bad_input_is_refused(arguments, message, capsys):
    code, payload = run_cli(capsys, *arguments)
    assert code == 2
    assert message in payload["error"]["message"]


@pytest.mark.parametrize("entry", [entry for entry in cards() if entry.teacache_fitted], ids=lambda entry: entry.name)
def test_fitted_coefficients_of_a_card_make_a_rule(entry):
    assert entry.teacache_id is None, "DiffSynth's come first"
    assert len(entry.teacache_fitted) == 5
    caching.make_rule(StepCache(kind="teacache", threshold_rel_l1=0.1), entry)
