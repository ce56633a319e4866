"""Distillation: what is wanted of the student, by hand on equations with known solutions and on tiny clips."""

import math
from pathlib import Path

import pytest
import torch

from sakuga.engine.resolve import resolve
from sakuga.engine.schedule import euler_step
from sakuga.errors import LoraError, TrainError
from sakuga.recipe import RecipeRequest
from sakuga.training import objective
from sakuga.training.checkpoint import publish, read_state
from sakuga.training.config import TrainConfig
from sakuga.training.distill import Phases, first_frame_of
from sakuga.training.loop import LoopOptions, Wish, run_loop
from sakuga.training.preflight import preflight
from sakuga.wan.catalogue import card
from sakuga.wan.passport import read_passport
from tiny_training import CARD, config, prepared_set, trainer_of, weights

PHASES = Phases(num_phases=4, num_places=3, num_small=2, shift=5.0)
SHAPE = (2, 16, 2, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


def fairy(folder):
    return weights(folder).lora_dir / "fairy.safetensors"


def distill(**changes):
    fast = {"distill_steps": 2, "distill_intervals": 2, "teacher_steps": 1, "still_share": 0.0}
    return config(mode="distill", **(fast | changes))


def a_batch(trainer, num=2):
    found = trainer.batches.of_step(0, num_batches=1, index=0)[0]
    return trainer.batches.micro_batch(found[:num])


def field(trainer, batch, sigma):
    with torch.no_grad():
        return trainer.distillation._velocity(batch, noisy(batch), sigma)


def noisy(batch):
    return objective.noisy(batch.latents_BCThw, batch.noise_BCThw, batch.sigma_B)


class TestPhases:
    def test_places_are_levels_of_the_sampler_and_of_the_teacher(self):
        assert len(PHASES.levels) == 25
        student = Phases(num_phases=4, num_places=1, num_small=1, shift=5.0).levels
        torch.testing.assert_close(PHASES.levels[::6], student)
        assert [PHASES.sigma_at(q) for q in (1.0, 0.0)] == [1.0, float(PHASES.levels[-3])]

    def test_all_places_are_drawn_alike(self):
        drawn = [PHASES.sigma_at((i + 0.5) / 120) for i in range(120)]
        assert sorted({drawn.count(sigma) for sigma in drawn}) == [10]

    def test_at_the_end_of_a_phase_the_teachers_own_steps_are_wanted(self):
        asked = []
        teacher = lambda x, sigma_B: asked.append(sigma_B.tolist()) or 3.0 * x

        def student(x, sigma_B):
            raise AssertionError("there is no jump left")

        last = torch.full((2,), float(PHASES.levels[4]))
        x = torch.ones(SHAPE)
        found, here_too = PHASES.wanted(x, last, teacher, student)
        assert asked == [[float(PHASES.levels[i])] * 2 for i in (4, 5)]
        here = x
        for i in (4, 5):
            here = euler_step(here, 3.0 * here, PHASES.levels[i], PHASES.levels[i + 1])
        torch.testing.assert_close(found, (here - x) / (PHASES.levels[6] - PHASES.levels[4]))
        torch.testing.assert_close(here_too, here)

    def test_a_straight_path_is_its_own_distillation(self):
        velocity = torch.randn(SHAPE)
        x = torch.randn(SHAPE)
        sigma = torch.tensor([PHASES.sigma_at(0.99), PHASES.sigma_at(0.3)])
        found, _ = PHASES.wanted(x, sigma, lambda *_: velocity, lambda *_: velocity)
        torch.testing.assert_close(found, velocity)

    def test_the_fixed_point_on_a_linear_equation_lands_where_the_teacher_does(self):
        """dx/dsigma = a x: a student that meets every demand jumps as far as all the teacher's small steps."""
        a, levels = 1.3, PHASES.levels.double()
        factors = {}  # of the student's velocity, by place, learnt from the end of each phase backwards

        def student(x, sigma_B):
            return torch.stack([factors[round(float(s), 5)] * row for s, row in zip(sigma_B, x, strict=True)])

        for place in reversed(range(12)):
            sigma = PHASES.levels[2 * place]
            wanted, _ = PHASES.wanted(torch.ones(1, 1, 1, 1, 1), sigma.view(1), lambda x, _: a * x, student)
            factors[round(float(sigma), 5)] = float(wanted)
        x = 1.0
        for phase in range(4):
            start, end = float(levels[6 * phase]), float(levels[6 * phase + 6])
            x += (end - start) * factors[round(start, 5)] * x
        small = math.prod(1 + a * float(levels[i + 1] - levels[i]) for i in range(24))
        assert x == pytest.approx(small, rel=1e-4)
        plain = math.prod(1 + a * float(levels[i + 6] - levels[i]) for i in (0, 6, 12, 18))
        assert abs(x - small) < 0.01 * abs(plain - small)


def test_patches_and_back():
    x = torch.randn(2, 16, 3, 4, 6)
    assert torch.equal(objective.unpatched(objective.patches(x), x.shape), x)


def test_a_relabelled_batch_is_the_same_noisy_sample(folder):
    trainer = trainer_of(folder, distill())
    batch = a_batch(trainer)
    found = trainer.distillation.held_out(batch)
    torch.testing.assert_close(noisy(found), noisy(batch), atol=1e-5, rtol=1e-5)
    assert not torch.equal(found.latents_BCThw, batch.latents_BCThw)


def test_the_teacher_is_the_base_with_guidance_whatever_the_adapter_learnt(folder):
    settings = distill(distill_intervals=1, distill_guidance=3.0)
    trainer = trainer_of(folder, settings)
    batch = a_batch(trainer)
    before = trainer.distillation.held_out(batch)
    plain = field(trainer, batch, batch.sigma_B)  # the adapter does nothing yet
    with torch.no_grad():
        for parameter in trainer.trained.values():
            parameter.normal_(std=0.1)
    after = trainer.distillation.held_out(batch)
    assert torch.equal(before.noise_BCThw, after.noise_BCThw)
    assert not torch.allclose(field(trainer, batch, batch.sigma_B), plain), "and it is on again"
    guided = before.noise_BCThw - before.latents_BCThw
    assert (guided - plain).norm() > 1e-3 * plain.norm(), "one step of the teacher is its velocity, guided"
    alone = trainer_of(folder, distill(distill_intervals=1, distill_guidance=1.0)).distillation.held_out(batch)
    torch.testing.assert_close(alone.noise_BCThw - alone.latents_BCThw, plain, atol=2e-4, rtol=2e-3)


def test_the_mean_is_the_target_and_nothing_is_left_changed(folder):
    trainer = trainer_of(folder, distill(ema_decay=0.5))
    with torch.no_grad():
        for parameter in trainer.trained.values():
            parameter.normal_(std=0.1)
    kept = {name: parameter.clone() for name, parameter in trainer.trained.items()}
    batch = a_batch(trainer, 4)
    (by_mean,) = trainer.distillation.of_step(batch, 3, trainer.averaged)
    by_itself = trainer.distillation.held_out(batch)
    assert not torch.equal(by_mean.noise_BCThw, by_itself.noise_BCThw)
    assert all(torch.equal(kept[name], parameter) for name, parameter in trainer.trained.items())
    assert all(parameter.requires_grad for parameter in trainer.trained.values())


def test_a_style_is_beside_the_base_of_teacher_and_student(folder):
    settings = distill(distill_intervals=1, rank=16, style_share=0.5)
    trainer = trainer_of(folder, settings, style_lora=fairy(folder))
    assert all(".default." in name for name in trainer.trained)
    assert [trainer.distillation.is_styled(step) for step in range(4)] == [False, True, False, True]
    batch = a_batch(trainer)
    (plain,) = trainer.distillation.of_step(batch, 0, trainer.averaged)
    (styled,) = trainer.distillation.of_step(batch, 1, trainer.averaged)
    expected = trainer_of(folder, settings, start_lora=fairy(folder))
    wanted = field(expected, batch, batch.sigma_B)
    torch.testing.assert_close(field(trainer, batch, batch.sigma_B), wanted, atol=2e-3, rtol=2e-2)
    assert not torch.equal(plain.noise_BCThw, styled.noise_BCThw)


def test_a_style_that_does_not_fit_the_run_is_refused(folder):
    with pytest.raises(LoraError, match="which the run does not"):
        trainer_of(folder, distill(targets=("q", "k")), style_lora=fairy(folder))


def test_stills_come_first(folder):
    trainer = trainer_of(folder, distill(num_steps=10, still_share=0.3))
    assert [trainer.distillation.is_still(step) for step in range(5)] == [True, True, True, False, False]
    batch = a_batch(trainer)
    still = first_frame_of(batch)
    assert still.latents_BCThw.shape[2] == still.given["y_BCTHW"].shape[2] == 1
    assert torch.equal(still.given["y_BCTHW"], batch.given["y_BCTHW"][:, :, :1])


def test_with_the_teacher_as_source_each_place_begins_where_the_last_one_ended(folder):
    trainer = trainer_of(folder, distill(distill_intervals=1, distill_source="teacher", teacher_steps=2))
    batch = a_batch(trainer)
    first, second = trainer.distillation.of_step(batch, 3, trainer.averaged)
    assert float(first.sigma_B[0]) == 1.0 and torch.allclose(noisy(first), batch.noise_BCThw)
    ended = noisy(first) + (second.sigma_B[0] - 1.0) * (first.noise_BCThw - first.latents_BCThw)
    torch.testing.assert_close(noisy(second), ended, atol=1e-5, rtol=1e-5)
    assert float(first.share_B.sum() + second.share_B.sum()) == pytest.approx(float(batch.share_B.sum()))


class Watching:
    def __init__(self, folder, stop_at=None):
        self.folder, self.stop_at = folder, stop_at
        self.losses, self.held_out, self.checkpoints = [], [], []

    def on_step(self, report, step_s):
        self.losses.append(report.loss)

    def on_evaluation(self, step, metrics):
        self.held_out.append(metrics["heldout/loss"])

    def on_checkpoint(self, state, staged):
        self.checkpoints.append(publish(staged, self.folder / f"checkpoint_{state.step}"))

    def wish(self, step):
        return Wish.STOP if step == self.stop_at else Wish.GO_ON


def run(folder, out, settings, *, stop_at=None, resume=None):
    trainer = trainer_of(folder, settings, style_lora=fairy(folder))
    if resume is not None:
        trainer.restore(resume, read_state(resume, settings))
    watching = Watching(out, stop_at)
    run_loop(trainer, watching, LoopOptions(save_every=100, max_held_out=1), out / "staging")
    return trainer, watching


def test_it_learns_and_writes_an_acceleration_lora(folder, tmp_path):
    settings = distill(num_steps=6, lr=1e-2, still_share=0.1, distill_steps=1, teacher_steps=3, distill_intervals=1)
    _, watching = run(folder, tmp_path, settings)
    assert watching.held_out[-1] < 0.9 * watching.held_out[0]
    passport = read_passport(watching.checkpoints[-1] / "lora.safetensors")
    assert passport.is_acceleration
    assert (passport.num_inference_steps, passport.guidance_scale, passport.flow_shift) == (1, 1.0, 5.0)


def test_a_resumed_distillation_is_the_uninterrupted_one(folder, tmp_path):
    settings = distill(
        num_steps=2, global_batch_size=1, distill_steps=1, ema_decay=0.9, still_share=0.5, distill_source="teacher"
    )
    whole, watched = run(folder, tmp_path / "whole", settings)
    _, begun = run(folder, tmp_path / "begun", settings, stop_at=1)
    resumed, rest = run(folder, tmp_path / "rest", settings, resume=begun.checkpoints[-1])
    assert begun.losses + rest.losses == watched.losses
    assert all(torch.equal(whole.trained[name], resumed.trained[name]) for name in whole.trained)


def test_a_model_of_two_experts_is_refused():
    with pytest.raises(TrainError, match="has two experts"):
        TrainConfig(mode="distill").check_card(card("wan2.2-t2v-a14b"))


@pytest.mark.parametrize("name", ["distill_steps", "distill_intervals", "teacher_steps"])
def test_numbers_of_steps_are_whole(name):
    with pytest.raises(TrainError, match=f"{name} is 0"):
        TrainConfig(mode="distill", **{name: 0})


@pytest.mark.parametrize("name, num_steps", [("fast4", 4), ("fast8", 8)])
def test_an_acceleration_lora_of_wan_mini_sets_steps_and_guidance_beside_a_style(name, num_steps):
    """Whichever comes first; a style says nothing of the schedule."""
    for loras in (["fairy", name], [name, "fairy"]):
        request = RecipeRequest.model_validate({"model": "wan-mini", "prompt": "x", "seed": 1, "loras": loras})
        recipe, inputs, paths = resolve(request, CARD, Path())
        assert (recipe.num_inference_steps, recipe.guidance_scale, recipe.flow_shift) == (num_steps, 1.0, 5.0)
        assert not [note for note in inputs.notes if "other weights" in note], "it is of this base"
        assert all(path.stat().st_size <= 2_000_000 for path in paths)


def test_the_preflight_passes_with_a_style_beside(folder):
    trainer = trainer_of(folder, distill(), style_lora=fairy(folder))
    assert preflight(trainer).num_tensors == len(trainer.trained)
