"""The engine without pictures: the cost model's seconds, and lanes that share them."""

import threading

import pytest

from sakuga.cost import DEVICES, estimate
from sakuga.engine import RenderEngine, RenderInputs
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.simulated import SimEngine
from sakuga.farm.lane import LaneWork, Outcome
from sakuga.jobstore import JobStore, Lane, LeasedRenders, NewJob, open_database
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects
from sakuga.wan.catalogue import card

RECIPE = RenderRecipe(
    model="wan2.1-t2v-14b", weights_sha256="0" * 64, prompt="x", width=1280, height=720, num_frames=81, seed=1,
    num_inference_steps=8, precision="bf16",
)  # fmt: skip


def run(engine: RenderEngine, state):
    while not state.is_done:
        state = engine.step(state)
    return engine.finish(state)


def test_a_render_takes_what_the_cost_model_says(tmp_path):
    slept = []
    engine = SimEngine(DEVICES["h200"], speed=10.0, sleep=slept.append)
    state = engine.start(RECIPE, RenderInputs())
    engine.snapshot(engine.step(state), tmp_path / "state.safetensors")
    video = run(engine, engine.restore(tmp_path / "state.safetensors", RECIPE))
    predicted = estimate(RECIPE, card(RECIPE.model), ExecutionPlan(), DEVICES["h200"])
    assert sum(slept) == pytest.approx(predicted.total_s / 10)
    assert video.seconds["total"] == pytest.approx(predicted.total_s)
    assert "no picture" in engine.receipt(RECIPE, video)["notes"][0]


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
            engine_for=lambda recipe: SimEngine(DEVICES["h200"], speed=1e6),
            inputs_for=lambda recipe: RenderInputs(),
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
