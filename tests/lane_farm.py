"""A store, storage and lanes on Wan-mini, for tests of what a lane does."""

import time

import pytest

from sakuga.engine import LocalEngine
from sakuga.engine.driven import EngineSession
from sakuga.farm.lane import LaneWork
from sakuga.jobstore import JobStore, Lane, LeasedRenders, NewJob, open_database
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects

NUM_STEPS = 6


@pytest.fixture(scope="module")
def engine():
    return LocalEngine.load("wan-mini")


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


@pytest.fixture
def farm(tmp_path, engine):
    """A store, objects, and lanes by number."""

    class Farm:
        clock = Clock()
        store = JobStore(open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}"), clock)
        renders = LeasedRenders(store)
        objects = FolderObjects(tmp_path / "objects")
        recipe = recipe_for(engine)

        def lane(self, number: int, **fields) -> LaneWork:
            return LaneWork(
                lane=Lane(name=f"lane-{number}", models=("wan-mini",)),
                renders=self.renders,
                objects=self.objects,
                session=EngineSession(lambda precision, execution: engine),
                **({"snapshot_steps": 2, "snapshot_s": 0, "orders_s": 0} | fields),
            )

        def submitted(self):
            return submit(self.store, self.recipe)

    yield Farm()
    Farm.store.engine.dispose()


@pytest.fixture(scope="module")
def expected(tmp_path_factory, engine):
    """sha256 of the video that nobody interrupted."""
    from sakuga.engine import write_render
    from sakuga.media.files import sha256_of

    folder = tmp_path_factory.mktemp("expected")
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
