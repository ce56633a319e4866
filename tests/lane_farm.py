"""A farm without Ray for tests of lanes: a store with a clock of its own, a folder, and lanes with Wan-mini.

Run: pytest tests/unit/test_lane.py
"""

import time
from pathlib import Path

from sakuga.engine import LocalEngine, write_render
from sakuga.engine.driven import EngineSession
from sakuga.farm.lane import LaneWork
from sakuga.jobstore import Job, JobStore, Lane, LeasedRenders, NewJob, open_database
from sakuga.media.files import sha256_of
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects

NUM_STEPS = 6


def recipe_for(engine, seed: int = 1) -> RenderRecipe:
    return RenderRecipe(
        model="wan-mini", weights_sha256=engine.model.weights_sha256, prompt="A dancer.", width=32, height=32,
        num_frames=5, num_inference_steps=NUM_STEPS, seed=seed,
    )  # fmt: skip


def submit(store, recipe: RenderRecipe, **fields):
    return store.submit(
        NewJob(
            tenant="app", render_key=recipe.render_key, model=recipe.model, recipe=recipe.as_dict(), request={},
            num_steps=recipe.num_inference_steps, work_s=1.0, **fields,
        )
    )  # fmt: skip


def after_the_claim():
    """A lane that is told to close when it has a render."""
    answers = iter([False])
    return lambda: next(answers, True)


class Clock:
    offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


class LaneFarm:
    """A store, objects, and lanes by number."""

    def __init__(self, folder: Path, engine: LocalEngine) -> None:
        self.clock, self.engine, self.recipe = Clock(), engine, recipe_for(engine)
        self.store = JobStore(open_database(f"sqlite:///{folder / 'jobs.sqlite'}"), self.clock)
        self.renders, self.objects = LeasedRenders(self.store), FolderObjects(folder / "objects")

    def lane(self, number: int, **fields) -> LaneWork:
        return LaneWork(
            lane=Lane(name=f"lane-{number}", models=("wan-mini",)),
            renders=self.renders,
            objects=self.objects,
            session=EngineSession(lambda precision, execution: self.engine),
            **({"snapshot_steps": 2, "snapshot_s": 0, "orders_s": 0} | fields),
        )

    def submitted(self) -> Job:
        return submit(self.store, self.recipe)


def undisturbed(folder: Path, engine: LocalEngine) -> str:
    """sha256 of the video that nobody interrupted."""
    recipe = recipe_for(engine)
    video = engine.render(recipe)
    return sha256_of(write_render(video, engine.receipt(recipe, video), folder, "video").video)


def during_step(monkeypatch, engine, number: int, act):
    """`act` in the middle of that step, once."""
    step, done = LocalEngine.step, []

    def acting(self, state):
        if state.step == number and not done:
            done.append(number)
            act()
        return step(self, state)

    monkeypatch.setattr(LocalEngine, "step", acting)
