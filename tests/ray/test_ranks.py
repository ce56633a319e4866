"""A lane's ranks as processes: the same video as one process makes, and a new set when one of them dies or hangs."""

import os
import signal

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from sakuga.engine import LocalEngine, write_render
from sakuga.engine.session import InputFiles
from sakuga.errors import RankLostError, WeightsError
from sakuga.farm.bundles import lane_placement
from sakuga.farm.ranks import RankSet, RankSpec
from sakuga.parallel.plan import ParallelPlan
from sakuga.quality import psnr
from sakuga.recipe import RenderRecipe

pytestmark = pytest.mark.ray

PLAN = ParallelPlan(cfg=2)


@pytest.fixture(scope="module")
def group(ray_cluster):
    placement = lane_placement(PLAN, gpus_per_rank=0)
    group = placement_group([dict(bundle) for bundle in placement.bundles], strategy=placement.strategy)
    ray.get(group.ready())
    yield group
    remove_placement_group(group)


@pytest.fixture(scope="module")
def ranks(group):
    ranks = RankSet(RankSpec(model="wan-mini", parallel=PLAN, allow_unverified=True, num_threads=1, niceness=1), group)
    ranks.start()
    yield ranks
    ranks.stop()


@pytest.fixture(scope="module")
def engine():
    return LocalEngine.load("wan-mini")


@pytest.fixture(scope="module")
def recipe(engine) -> RenderRecipe:
    return RenderRecipe(
        model="wan-mini", weights_sha256=engine.model.weights_sha256, prompt="A dancer.", width=32, height=32,
        num_frames=5, num_inference_steps=4, seed=1, guidance_scale=2.0,
    )  # fmt: skip


def finished(ranks, at, folder):
    while not at.is_done:
        at = ranks.step(at)
    return ranks.finish(at, folder)


def frames(path):
    from sakuga.media import read_video

    return read_video(path)


def test_two_ranks_render_what_one_process_does_and_resume_after_one_was_killed(ranks, engine, recipe, tmp_path):
    video = engine.render(recipe)
    expected = frames(write_render(video, engine.receipt(recipe, video), tmp_path / "one", "video").video)
    assert os.getpid() not in ranks.ping() and len(set(ranks.ping())) == 2
    at = ranks.step(ranks.step(ranks.begin(recipe, InputFiles())))
    ranks.snapshot(at, tmp_path / "state")
    os.kill(ranks.ping()[1], signal.SIGKILL)
    with pytest.raises(RankLostError):
        ranks.step(at)
    assert ranks.is_broken
    before = ranks.generation
    ranks.start()
    assert ranks.generation == before + 1
    receipt = finished(ranks, ranks.begin(recipe, InputFiles(), tmp_path / "state"), tmp_path)
    assert receipt["key"] == recipe.render_key
    assert psnr(frames(tmp_path / "video.mp4"), expected).mean_db > 45


def test_an_error_that_all_ranks_have_leaves_them_usable(ranks, recipe, tmp_path):
    from dataclasses import replace

    with pytest.raises(WeightsError, match="this engine holds"):
        ranks.begin(replace(recipe, weights_sha256="0" * 64), InputFiles())
    assert ranks.ping()


def test_a_rank_that_hangs_is_found_by_the_check(ranks, recipe):
    import asyncio
    import threading

    if ranks.is_broken:
        ranks.start()
    at, ended = ranks.begin(recipe, InputFiles()), []

    def step():
        try:
            ranks.step(at)
        except RankLostError as error:
            ended.append(error)

    os.kill(ranks.ping()[0], signal.SIGSTOP)
    thread = threading.Thread(target=step)
    thread.start()
    asyncio.run(ranks.check(timeout_s=2.0))
    thread.join(60)
    assert ended and ranks.is_broken
