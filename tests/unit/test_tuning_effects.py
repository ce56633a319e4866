"""Effects with intervals: what was put in is found, what is noise is not told apart."""

import itertools

import numpy as np
import pytest

from sakuga.tuning.effects import effects
from sakuga.tuning.space import parse_space
from sakuga.tuning.trials import DONE, FAILED, CaseFigures, TrialResult

SPACE = parse_space({"steps": [4, 8], "cache": [None, "a"]})


def trials(value, cases=6, noise=0.0):
    """One trial for each point; `value(point, case)` is the figure."""
    rng = np.random.default_rng(0)
    found = []
    for steps, cache in itertools.product([4, 8], [None, "a"]):
        point = {"steps": steps, "cache": cache}
        rows = tuple(
            CaseFigures(name=str(case), figures={"ssim": value(point, case) + noise * rng.normal()})
            for case in range(cases)
        )
        found.append(TrialResult(id=f"{steps}{cache}", point=point, state=DONE, rows=rows))
    return found


def test_what_was_put_in_is_found_although_cases_differ_more():
    def value(point, case):
        return case + (0.1 if point["steps"] == 8 else 0.0)

    steps, cache = effects(trials(value, noise=0.005), SPACE, ["ssim"])
    assert (steps.parameter, cache.parameter) == ("steps", "cache"), "the strongest first"
    low, high = steps.levels
    assert (low.label, high.label) == ("4", "8")
    assert high.effect == pytest.approx(0.05, abs=0.01) and low.effect == pytest.approx(-0.05, abs=0.01)
    assert steps.is_clear and not cache.is_clear and steps.num_blocks == 6
    assert high.mean == pytest.approx(2.6, abs=0.02), "cases 0 to 5, and 0.1"


def test_intervals_cover_as_often_as_they_say():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        found = effects(trials(lambda *_: rng.normal(), cases=5), SPACE, ["ssim"])
        effect = next(each for each in found if each.parameter == "steps")
        level = effect.levels[0]
        covered += abs(level.effect) <= level.half_width
    assert 0.9 <= covered / 200 <= 0.99


def test_one_block_has_no_interval_and_trials_without_rows_count_by_seed():
    (effect, _) = effects(trials(lambda point, _: point["steps"], cases=1), SPACE, ["ssim"])
    assert effect.levels[0].half_width is None and not effect.is_clear
    space = parse_space({"rank": [4, 16]})
    results = [
        TrialResult(id=str(rank), point={"rank": rank}, state=DONE, seed=seed, figures={"heldout_loss": seed - rank})
        for rank in (4, 16)
        for seed in (0, 1, 2)
    ]  # fmt: skip
    (effect,) = effects(results, space, ["heldout_loss"])
    assert effect.num_blocks == 3 and effect.is_clear and effect.levels[0].effect > 0


def test_seeds_are_the_blocks_where_there_are_several_and_noise_seeds_are_not():
    """Cases of one seed share one trained LoRA, and noise seeds one prompt: more of them is not more evidence."""
    space = parse_space({"rank": [4, 16]})

    def result(rank, seed, names):
        rows = tuple(CaseFigures(name=name, figures={"ssim": rank + seed}) for name in names)
        return TrialResult(id=f"{rank}-{seed}", point={"rank": rank}, state=DONE, seed=seed, rows=rows)

    many = [result(rank, seed, ("a", "b", "c")) for rank in (4, 16) for seed in (0, 1)]
    assert effects(many, space, ["ssim"])[0].num_blocks == 2
    noisy = [result(rank, 0, ("a-s1", "a-s2", "b-s1", "b-s2")) for rank in (4, 16)]
    assert effects(noisy, space, ["ssim"])[0].num_blocks == 2


def test_rounding_is_no_effect_and_near_values_are_told_apart():
    for seed in range(40):
        numbers = np.random.default_rng(seed).uniform(0.5, 1, 2)
        space = parse_space({"steps": [4, 8], "cache": [None, "a"]})
        found = effects(
            trials(lambda point, case, numbers=numbers: numbers[case] + point["steps"], cases=2), space, ["ssim"]
        )
        assert not next(each for each in found if each.parameter == "cache").is_clear
    space = parse_space({"lr": [1.001, 1.002, None, "none"]})
    results = [
        TrialResult(id=str(n), point={"lr": lr}, state=DONE, figures={"heldout_loss": n})
        for n, lr in enumerate((1.001, 1.002, None, "none"))
    ]
    (effect,) = effects(results, space, ["heldout_loss"])
    assert len(effect.levels) == 4


def test_ranges_are_cut_in_thirds_and_failed_trials_left_out():
    space = parse_space({"lr": {"low": 0.0, "high": 1.0}})
    results = [
        TrialResult(id=str(n), point={"lr": n / 8}, state=DONE, figures={"heldout_loss": n / 8}) for n in range(9)
    ]
    results.append(TrialResult(id="x", point={"lr": 0.5}, state=FAILED))
    (effect,) = effects(results, space, ["heldout_loss"])
    assert [level.num_trials for level in effect.levels] == [3, 3, 3]
    assert [level.label for level in effect.levels] == ["0 – 0.333", "0.333 – 0.667", "0.667 – 1"]


def test_a_parameter_of_one_level_has_no_effect():
    assert effects(trials(lambda *_: 1.0)[:1], SPACE, ["ssim"]) == []
