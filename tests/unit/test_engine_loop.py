"""Between two steps: go on, snapshot, pause, cancel; snapshots where they are light; a preview without a decoder."""

import dataclasses

import numpy as np
import pytest
import torch

from sakuga.engine import LocalEngine, RenderInputs, RenderState
from sakuga.engine.loop import Decision, SnapshotEvery, denoise, strongest
from sakuga.engine.state import Conditioning
from sakuga.quality import psnr
from sakuga.recipe import RenderRecipe, StepCache
from sakuga.wan.caching import BranchCache
from sakuga.wan.preview import fit_latent_to_rgb

NUM_STEPS = 12


class Counting:
    """An engine that only counts."""

    def step(self, state):
        caches = {"positive.0": BranchCache(tensors={"velocity": torch.ones(1)})}
        return dataclasses.replace(state, step=state.step + 1, caches=caches)


def start(refresh_every: int | None = None) -> RenderState:
    cache = StepCache(kind="forecast", threshold_rel_l1=0.1, refresh_every=refresh_every)
    recipe = RenderRecipe(model="m", weights_sha256="ab" * 32, prompt="x", seed=1, step_cache=cache)
    return RenderState(
        recipe=recipe,
        conditioning=Conditioning(context_positive_BLD=torch.zeros(1)),
        latents_BCTHW=torch.zeros(1),
        sigmas=torch.linspace(1, 0, NUM_STEPS + 1),
    )


def ask(**at):
    """A control that wants something at given steps."""
    wishes = {int(step.removeprefix("step_")): decision for step, decision in at.items()}
    return lambda state: wishes.get(state.step, Decision.GO_ON)


def drive(control, state=None, agree=lambda decision: decision):
    saved = []
    end = denoise(Counting(), state or start(), control, snapshot=lambda s: saved.append(s.step), agree=agree)
    return end, saved


def test_to_the_end():
    end, saved = drive(ask())
    assert (end.is_done, end.state.step, saved) == (True, NUM_STEPS, [])


def test_a_snapshot_goes_on_a_pause_stops_after_one_a_cancel_without():
    end, saved = drive(ask(step_3=Decision.SNAPSHOT, step_7=Decision.PAUSE))
    assert (end.decision, end.state.step, saved) == (Decision.PAUSE, 7, [3, 7])
    end, saved = drive(ask(step_5=Decision.CANCEL))
    assert (end.decision, end.state.step, saved) == (Decision.CANCEL, 5, [])


def test_after_the_last_step_only_a_cancel_counts():
    end, saved = drive(ask(step_12=Decision.PAUSE))
    assert (end.is_done, saved) == (True, [])
    assert drive(ask(step_12=Decision.CANCEL))[0].decision is Decision.CANCEL


def test_all_ranks_do_what_was_agreed():
    """This rank wants to go on, another one to pause."""
    end, saved = drive(ask(), agree=lambda decision: strongest([decision, Decision.PAUSE]))
    assert (end.decision, saved) == (Decision.PAUSE, [1])


@pytest.mark.parametrize(
    ("every", "refresh_every", "steps"),
    [(3, None, [6]), (3, 4, [4, 8]), (2, 1, [2, 4, 6, 8, 10]), (5, 6, [6])],
    ids=["never light: when patience ends", "at a refresh", "always light", "a little late"],
)
def test_snapshots_wait_for_a_refresh(every, refresh_every, steps):
    assert drive(SnapshotEvery(num_steps=every), start(refresh_every))[1] == steps


def test_latents_that_are_colours_are_seen_exactly():
    weight = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    def encode(video):
        small = torch.nn.functional.interpolate(video[:, 0][None], size=(4, 4), mode="area")[0]
        return torch.einsum("ck,khw->chw", weight, small)[:, None] + 0.3

    seen = fit_latent_to_rgb(encode, pictures)
    image = torch.rand(3, 1, 32, 32) * 2 - 1
    picture = seen.picture(encode(image)[:, 0], 4, 4)
    wanted = torch.nn.functional.interpolate(image[:, 0][None], size=(4, 4), mode="area")[0]
    assert np.abs(picture / 127.5 - 1 - wanted.permute(1, 2, 0).numpy()).max() < 0.02


@pytest.fixture(scope="module")
def mini():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield LocalEngine.load("wan-mini")
    torch.set_num_threads(before)


def test_a_preview_is_a_small_picture_of_what_will_come(mini):
    """After half of the steps it resembles the finished frame, and more than the first noise does."""
    recipe = RenderRecipe(
        model="wan-mini", weights_sha256=mini.model.weights_sha256, prompt="a woman in a red dress dancing a twirl",
        seed=5, width=64, height=64, num_frames=5, num_inference_steps=8, guidance_scale=1.0,
    )  # fmt: skip
    state = mini.start(recipe, RenderInputs())
    previews = [mini.preview(state, 1.0)]
    while not state.is_done:
        state = mini.step(state)
        previews.append(mini.preview(state, 1.0))
    final = mini.finish(state).frames_THWC[-1]
    assert previews[0].shape == final.shape == (64, 64, 3)
    scores = [psnr(final[None], preview[None]).pooled_db for preview in previews]
    assert scores[-1] > 15, "colours and places of the decoded frame"
    assert scores[4] > scores[0] + 3


def test_a_restored_state_has_a_preview_too(mini, tmp_path):
    recipe = RenderRecipe(
        model="wan-mini", weights_sha256=mini.model.weights_sha256, prompt="x", seed=5, width=32, height=32,
        num_frames=5, num_inference_steps=2, guidance_scale=1.0,
    )  # fmt: skip
    mini.snapshot(mini.step(mini.start(recipe, RenderInputs())), tmp_path / "s.safetensors")
    assert mini.preview(mini.restore(tmp_path / "s.safetensors")).shape == (32, 32, 3)
