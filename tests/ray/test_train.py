"""Training on Ray Train: several workers, a worker that is killed, a validation in a task of its own."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import ray.train

from sakuga.errors import NumericsError, TrainError
from sakuga.farm.train import NOTICE_EVERY, Workers, _RayRun, run_training
from sakuga.training.loop import LoopOptions, Wish
from sakuga.training.prepared import LatentCache, PreparedSet
from sakuga.training.run import TrainJob, run_local
from sakuga.training.runlog import read_log
from sakuga.training.validation import ValidationOptions
from sakuga.training.world import World
from tiny_training import config, prepared_set

pytestmark = pytest.mark.ray

LOSS_TOLERANCE = 5e-3
"""Relative: products are bf16 and gradients are summed in another order."""
LIMIT_S = 240


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder)
    return folder


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory):
    """Losses of ten steps in one process."""
    out = tmp_path_factory.mktemp("alone")
    run_local(job_of(prepared, out))
    return losses(out)


def job_of(prepared, out, **changes) -> TrainJob:
    given = {
        "config": config(num_steps=10),
        "prepared": str(prepared),
        "out": str(out),
        "loop": LoopOptions(save_every=2, evaluate_every=5),
    }
    return TrainJob(**(given | changes))


def losses(out) -> list[float]:
    return [line["loss"] for line in read_log(out) if "loss" in line]


def workers_of_this_test() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(child.cmdline()[:1])
    ]


def kill_at(out, step: int) -> threading.Thread:
    """Kills a worker when the log has come to a step."""

    def watch() -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            lines = list(read_log(out))
            if lines and lines[-1]["step"] >= step:
                os.kill(workers_of_this_test()[-1].pid, signal.SIGKILL)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_costs_steps_and_not_the_curve(ray_cluster, prepared, alone, tmp_path):
    out = tmp_path / "run"
    killer = kill_at(out, 5)
    result = run_training(
        job_of(prepared, out, validation=ValidationOptions(num_samples=1, num_steps=1)), Workers.parse("1:2")
    )
    killer.join(LIMIT_S)
    assert result.steps == 10
    assert losses(out) == pytest.approx(alone, rel=LOSS_TOLERANCE)
    starts = {path.name.split("_")[2] for path in out.glob("step_*")}
    assert len(starts) == 1  # those of the second start; the first one's are gone, or were never needed
    assert (out / "lora.safetensors").is_file()
    assert result.metrics["validation/psnr_db"] > 0
    assert (out / "validation.png").is_file()


def test_what_a_worker_raises_is_what_the_user_sees(ray_cluster, prepared, tmp_path):
    found = PreparedSet.read(prepared)
    cache = LatentCache(tmp_path / "cache", tmp_path)
    source = found.open_cache(prepared, prepared)
    for sample in found.samples:
        tensors = source.get("videos", sample.video_key)
        tensors["latents_CThw"][:] = float("nan")
        cache.put("videos", sample.video_key, tensors)
        cache.put("texts", sample.text_key, source.get("texts", sample.text_key))
    cache.put("texts", found.empty_text_key, source.get("texts", found.empty_text_key))
    found.write(tmp_path)
    from sakuga.errors import PreflightError

    with pytest.raises((NumericsError, PreflightError), match="not finite"):
        run_training(job_of(tmp_path, tmp_path / "run"), Workers())


def test_workers_that_cannot_share_a_sequence(prepared, tmp_path):
    with pytest.raises(TrainError, match="groups of 2"):
        run_training(job_of(prepared, tmp_path, sequence=2), Workers(minimum=1, maximum=3))


def test_a_notice_saves_once_and_time_that_is_up_stops(prepared, tmp_path, monkeypatch):
    told = [None, object(), object(), None, object()]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: told.pop(0))
    run = _RayRun(job_of(prepared, tmp_path), World(), first_step=0)
    wishes = [run.wish(step) for step in range(1, 5 * NOTICE_EVERY + 1)]
    assert {wishes[i] for i in range(len(wishes)) if (i + 1) % NOTICE_EVERY} == {Wish.GO_ON}
    assert wishes[NOTICE_EVERY - 1 :: NOTICE_EVERY] == [Wish.GO_ON, Wish.SAVE, Wish.GO_ON, Wish.GO_ON, Wish.SAVE]
    late = _RayRun(job_of(prepared, tmp_path, max_seconds=0.0), World(), first_step=0)
    assert late.wish(NOTICE_EVERY) is Wish.STOP


@pytest.mark.slow
def test_a_run_goes_on_after_its_driver_was_killed(prepared, alone, tmp_path):
    out = tmp_path / "run"
    words = [
        os.path.join(os.path.dirname(sys.executable), "sakuga"), "train", "--data", str(prepared), "--out", str(out),
        "--rank", "4", "--steps", "10", "--batch-size", "4", "--lr", "1e-2", "--warmup-steps", "1",
        "--base-precision", "fp32", "--validate", "0", "--save-every", "2", "--evaluate-every", "5", "--workers", "1",
    ]  # fmt: skip
    driver = subprocess.Popen(words, start_new_session=True)
    deadline = time.monotonic() + LIMIT_S
    while not (out.exists() and len(losses(out)) >= 5):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    for process in family:  # the whole machine, as when its power fails
        process.kill()
    driver.wait()
    subprocess.run(words, check=True, timeout=LIMIT_S)
    assert losses(out) == pytest.approx(alone, rel=LOSS_TOLERANCE)
