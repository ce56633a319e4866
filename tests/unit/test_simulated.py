"""The engine without pictures: the cost model's seconds, and lanes that share them."""

import threading
from dataclasses import replace

import pytest

from sakuga.cost import DEVICES, Planned, estimate
from sakuga.engine.session import InputFiles
from sakuga.engine.simulated import SimEngine
from sakuga.errors import WeightsError
from sakuga.farm.lane import LaneWork, Outcome
from sakuga.jobstore import JobStore, Lane, LeasedRenders, NewJob, open_database
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects
from sakuga.wan.catalogue import card

RECIPE = RenderRecipe(
    model="wan2.1-t2v-14b", weights_sha256="0" * 64, prompt="x", width=1280, height=720, num_frames=81, seed=1,
    num_inference_steps=8, precision="bf16",
)  # fmt: skip


def test_a_render_takes_what_the_cost_model_says(tmp_path):
    slept = []
    engine = SimEngine(DEVICES["h200"], speed=10.0, sleep=slept.append)
    at = engine.step(engine.begin(RECIPE, InputFiles()))
    engine.snapshot(at, tmp_path / "state")
    at = engine.begin(RECIPE, InputFiles(), tmp_path / "state")
    assert at.step == 1
    while not at.is_done:
        at = engine.step(at)
    receipt = engine.finish(at, tmp_path)
    predicted = estimate(RECIPE, card(RECIPE.model), Planned(), DEVICES["h200"])
    assert sum(slept) == pytest.approx(predicted.total_s / 10)
    assert receipt["seconds"]["total"] == pytest.approx(predicted.total_s)
    assert "no picture" in receipt["notes"][0] and (tmp_path / "video.mp4").stat().st_size > 0
    with pytest.raises(WeightsError, match="another render"):
        engine.begin(replace(RECIPE, seed=2), InputFiles(), tmp_path / "state")


def test_many_lanes_share_a_queue_and_nothing_is_done_twice(tmp_path):
    store = JobStore(open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}"))
    for number in range(40):
        store.submit(
            NewJob(
                tenant=f"tenant-{number % 3}", render_key=f"{number:064d}", model=RECIPE.model,
                recipe=RECIPE.as_dict(), request={}, num_steps=8, work_s=1.0,
            )
        )  # fmt: skip
    renders, outcomes = LeasedRenders(store), []

    def work(number: int) -> None:
        lane = LaneWork(
            lane=Lane(name=f"lane-{number}", models=(RECIPE.model,)),
            renders=renders,
            objects=FolderObjects(tmp_path / "objects"),
            session=SimEngine(DEVICES["h200"], speed=1e6),
        )
        while (outcome := lane.run_one()) is not None:
            outcomes.append(outcome)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Outcome.COMPLETED] * 40
    for number in range(3):
        jobs, _ = store.page(f"tenant-{number}", limit=100)
        assert {job.state for job in jobs} == {"completed"}
    store.engine.dispose()
