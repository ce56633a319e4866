"""The loop: it learns, evaluates the same questions each time, resumes to the same curve and stops at NaN."""

import math

import pytest
import torch

from sakuga.errors import NumericsError
from sakuga.training.checkpoint import publish, read_state
from sakuga.training.loop import LoopOptions, Wish, run_loop
from tiny_training import config, prepared_set, trainer_of


class Watching:
    def __init__(self, folder, stop_at=None):
        self.folder, self.stop_at = folder, stop_at
        self.losses, self.held_out, self.checkpoints = [], [], []

    def on_step(self, report, step_s):
        self.losses.append(report.loss)

    def on_evaluation(self, step, metrics):
        self.held_out.append((step, metrics))

    def on_checkpoint(self, state, staged):
        self.checkpoints.append(publish(staged, self.folder / f"checkpoint_{state.step}"))

    def wish(self, step):
        return Wish.STOP if step == self.stop_at else Wish.GO_ON


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


def run(folder, out, settings, *, stop_at=None, resume=None, **given):
    trainer = trainer_of(folder, settings, **given)
    if resume is not None:
        trainer.restore(resume, read_state(resume, settings))
    watching = Watching(out, stop_at)
    run_loop(trainer, watching, LoopOptions(save_every=2, evaluate_every=2), out / "staging")
    return trainer, watching


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_and_the_held_out_loss_shows_it(folder, tmp_path, optimizer):
    settings = config(num_steps=12, lr=2e-2, optimizer=optimizer, ema_decay=0.5)
    _, watching = run(folder, tmp_path, settings)
    first, last = watching.held_out[0][1]["heldout/loss"], watching.held_out[-1][1]["heldout/loss"]
    assert [step for step, _ in watching.held_out] == [0, 2, 4, 6, 8, 10, 12]
    assert last < 0.97 * first
    assert len(watching.held_out[0][1]) == 10


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(folder, tmp_path):
    settings = config(num_steps=6, ema_decay=0.9)
    whole, watched = run(folder, tmp_path / "whole", settings)
    _, begun = run(folder, tmp_path / "begun", settings, stop_at=3)
    resumed, rest = run(folder, tmp_path / "rest", settings, resume=begun.checkpoints[-1])
    assert begun.losses + rest.losses == watched.losses
    for name in whole.trained:
        assert torch.equal(whole.trained[name], resumed.trained[name])
        assert torch.equal(whole.ema.mean[name], resumed.ema.mean[name])


def test_moments_in_8_bits_learn_and_go_on_bit_for_bit(folder, tmp_path):
    """Without compiling, which takes half a minute; the checkpoint is read as tensors only, these included."""
    settings = config(num_steps=8, lr=2e-2, optimizer="adamw8bit", rank=32, targets=("q", "ffn.0"))
    with torch.compiler.set_stance("force_eager"):
        whole, watched = run(folder, tmp_path / "whole", settings)
        resumed, rest = run(folder, tmp_path / "rest", settings, resume=watched.checkpoints[1])
    moments = [state["exp_avg"] for state in resumed.optimizers[0].state.values()]
    assert {type(moment).__name__ for moment in moments} == {"OptimState8bit"}
    assert rest.losses == watched.losses[4:]
    assert all(torch.equal(whole.trained[name], resumed.trained[name]) for name in whole.trained)
    first, last = (watched.held_out[place][1]["heldout/loss"] for place in (0, -1))
    assert last < 0.99 * first


def test_micro_batches_change_rounding_only(folder, tmp_path):
    _, together = run(folder, tmp_path / "a", config(num_steps=4))
    _, apart = run(folder, tmp_path / "b", config(num_steps=4), micro_batch_size=1)
    assert apart.losses == pytest.approx(together.losses, rel=5e-3)  # bf16 products


def test_nan_stops_and_names_the_sample(folder, tmp_path):
    settings = config(num_steps=6)
    trainer = trainer_of(folder, settings)
    watching = Watching(tmp_path)
    bad = trainer.batches.samples[0]
    poisoned = dict(trainer.batches.video(bad))
    poisoned["latents_CThw"] = torch.full_like(poisoned["latents_CThw"], math.nan)
    entry = trainer.batches.entry
    trainer.batches.entry = lambda kind, key: poisoned if key == bad.video_key else entry(kind, key)
    with pytest.raises(NumericsError, match=rf"at {bad.name}; the last checkpoint is good"):
        run_loop(trainer, watching, LoopOptions(save_every=1), tmp_path / "staging")
    assert all(torch.isfinite(parameter).all() for parameter in trainer.trained.values())
