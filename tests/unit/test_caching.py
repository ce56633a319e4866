"""The rules of the step caches on a made-up model: what they skip, what they answer, what they remember."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from sakuga.errors import RecipeError
from sakuga.recipe import StepCache
from sakuga.wan.caching import EMPTY, make_rule, polynomial, teacache
from sakuga.wan.catalogue import card

CARD = card("wan-mini")
NUM_STEPS = 40


@dataclass
class Curve:
    """One step of a model whose velocity is a smooth curve in time; hidden states are the latents, two blocks."""

    index: int
    latents_BCTHW: torch.Tensor
    bend: float = 1.0
    num_steps: int = NUM_STEPS
    run: list[int] = field(default_factory=list)

    @property
    def sigma(self) -> float:
        return 1 - self.index / self.num_steps

    def velocity(self) -> torch.Tensor:
        return torch.linspace(1, 2, 8) * (1 + self.bend * self.sigma**3)

    def modulation(self):
        return torch.full((4,), 1 + self.sigma)

    def embedded(self):
        return self.latents_BCTHW

    def after_all_blocks(self):
        self.run.append(self.index)
        return self.latents_BCTHW + self.velocity()

    def head(self, hidden_BSD):
        return hidden_BSD - self.latents_BCTHW

    def mean_abs(self, x):
        return float(x.abs().mean())


def ride(rule, bend: float = 1.0):
    """Latents at the end, steps whose blocks were all run, and the branch's memory after each step."""
    latents, cache, computed, memories = torch.zeros(8), EMPTY, [], []
    for index in range(NUM_STEPS):
        step = Curve(index, latents, bend)
        velocity, cache = rule(step, cache)
        memories.append(cache)
        if torch.allclose(velocity, step.velocity(), atol=1e-6):
            computed.append(index)
        latents = latents - velocity / NUM_STEPS
    return latents, computed, memories


def exact(bend: float = 1.0) -> torch.Tensor:
    return -sum(Curve(index, torch.zeros(8), bend).velocity() for index in range(NUM_STEPS)) / NUM_STEPS


def forecast_rule(threshold: float, **fields):
    return make_rule(StepCache(kind="forecast", threshold_rel_l1=threshold, **fields), CARD)


def test_steps_are_skipped_and_the_end_is_near():
    latents, computed, _ = ride(forecast_rule(0.02))
    assert len(computed) < 0.6 * NUM_STEPS
    assert {0, NUM_STEPS - 1} <= set(computed), "the first and the last step are always computed"
    assert (latents - exact()).abs().max() < 0.05 * exact().abs().max()


def test_a_larger_threshold_skips_more():
    counts = [len(ride(forecast_rule(threshold))[1]) for threshold in (1e-6, 0.02, 10.0)]
    assert counts[0] > counts[1] > counts[2]


def test_forecast_is_exact_on_a_straight_line():
    class Line(Curve):
        def velocity(self):
            return torch.linspace(1, 2, 8) * (3 + self.sigma)

    latents, cache, run = torch.zeros(8), EMPTY, 0
    rule = forecast_rule(1e-4)
    for index in range(NUM_STEPS):
        step = Line(index, latents)
        velocity, cache = rule(step, cache)
        assert torch.allclose(velocity, step.velocity(), rtol=1e-5)
        latents, run = latents - velocity / NUM_STEPS, run + len(step.run)
    assert run == 4  # two for the line, one that finds no error, the last


def test_a_refresh_forgets_all():
    """So a snapshot taken there needs no memory."""
    rule = forecast_rule(10.0, refresh_every=10)
    _, computed, memories = ride(rule)
    assert {0, 10, 20, 30, NUM_STEPS - 1} <= set(computed)
    again, _ = rule(Curve(20, torch.ones(8)), memories[19])
    fresh, memory = rule(Curve(20, torch.ones(8)), EMPTY)
    assert torch.equal(again, fresh)
    assert memory.tensors.keys() <= memories[20].tensors.keys()


def test_teacache_decides_as_diffsynth_does():
    """Their class and our rule on the same modulations: the same steps, the same residuals."""
    from diffsynth.pipelines.wan_video import TeaCache

    theirs = TeaCache(NUM_STEPS, 0.3, "Wan2.1-T2V-1.3B")
    # Changes of this model are a hundred times those of Wan, for which the polynomial was fitted.
    theirs.coefficients = [0.0, 0.0, 0.0, 3.0, 0.0]
    rule = teacache(0.3, tuple(theirs.coefficients))
    latents, cache, skipped = torch.zeros(8), EMPTY, 0
    for index in range(NUM_STEPS):
        step = Curve(index, latents)
        velocity, cache = rule(step, cache)
        if theirs.check(None, latents, step.modulation()):
            skipped += 1
            assert torch.allclose(velocity, step.head(theirs.update(latents)), atol=1e-6)
        else:
            theirs.store(step.after_all_blocks())
            assert torch.allclose(velocity, step.velocity(), atol=1e-6)
        latents = latents - velocity / NUM_STEPS
    assert 5 < skipped < 35


def test_coefficients_of_a_card():
    assert make_rule(StepCache(kind="teacache", threshold_rel_l1=0.1), card("wan2.1-t2v-14b"))
    assert make_rule(StepCache(kind="teacache", threshold_rel_l1=0.1), replace(CARD, teacache_fitted=(0, 0, 0, 1, 0)))
    bare = replace(CARD, teacache_fitted=())
    with pytest.raises(RecipeError, match="wan-mini has no TeaCache coefficients; take forecast, which needs none"):
        make_rule(StepCache(kind="teacache", threshold_rel_l1=0.1), bare)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(RecipeError, match="did you mean 'teacache'"):
        make_rule(StepCache(kind="teacach", threshold_rel_l1=0.1), CARD)
    with pytest.raises(RecipeError, match="choose one of teacache, forecast"):
        make_rule(StepCache(kind="zzz", threshold_rel_l1=0.1), CARD)


def test_polynomial_is_numpys():
    assert polynomial((3.0, -2.0, 0.5), 0.7) == pytest.approx(np.poly1d([3.0, -2.0, 0.5])(0.7))


@pytest.mark.parametrize("every", [0, -1, 1.5, True, 1001])
def test_refresh_every_out_of_range(every):
    with pytest.raises(RecipeError, match="refresh_every"):
        StepCache(kind="forecast", threshold_rel_l1=0.1, refresh_every=every)
