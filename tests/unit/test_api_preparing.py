"""From a wish to a job: lengths, defaults, prices, what does not fit."""

from dataclasses import replace

import pytest

from sakuga.api import ApiDeps, ApiSettings, ServedModel
from sakuga.api.body import Sent
from sakuga.api.fields import wish_of
from sakuga.api.preparing import prepare
from sakuga.cost import estimate
from sakuga.cost.devices import CPU
from sakuga.engine.plan import ExecutionPlan
from sakuga.errors import MemoryLimitError, RecipeError, UnverifiedError, VideoError
from sakuga.jobstore import open_stores
from sakuga.media import write_mp4
from sakuga.parallel import ParallelPlan
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects
from sakuga.wan.catalogue import card

SERVED = ServedModel(card=card("wan-mini"), device=CPU)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return open_stores(f"sqlite:///{tmp_path_factory.mktemp('store') / 'jobs.sqlite'}")


@pytest.fixture
def job_of(stores, tmp_path):
    """The job of some fields."""

    def made(served: ServedModel = SERVED, files=None, settings: ApiSettings | None = None, **fields: object):
        deps = ApiDeps(
            stores=stores, objects=FolderObjects(tmp_path / "objects"), models={served.card.name: served},
            scratch=tmp_path, settings=settings or ApiSettings(),
        )  # fmt: skip
        wish = wish_of(Sent(fields={"prompt": "x"} | fields, files=files or {}))
        return prepare(deps, "app", wish, tmp_path).job

    return made


@pytest.mark.parametrize(
    ("fields", "num_frames", "cut_frames", "seconds"),
    [
        ({"seconds": "4"}, 61, 60, "4"),
        ({"seconds": "5"}, 77, 75, "5"),
        ({"seconds": "6"}, 89, None, "6"),
        ({"seconds": "5", "fps": 16}, 81, 80, "5"),
        ({"seconds": 0.01}, 1, None, "0.01"),
        ({"num_frames": 77}, 77, None, "5.133"),
        ({}, 33, None, "2.2"),
    ],
)
def test_seconds_become_frames(job_of, fields, num_frames, cut_frames, seconds):
    job = job_of(**fields)
    assert (job.recipe["num_frames"], job.request["cut_frames"], job.request["seconds"]) == (
        num_frames, cut_frames, seconds,
    )  # fmt: skip


def test_what_is_left_out_is_the_cards(job_of):
    recipe = RenderRecipe.from_dict(job_of().recipe)
    mini = card("wan-mini")
    assert (recipe.width, recipe.num_frames, recipe.num_inference_steps) == (mini.width, mini.num_frames, 20)


def test_a_profile_fills_in_and_the_request_wins(job_of, stores):
    served = replace(SERVED, profiles={"draft": {"num_inference_steps": 4, "guidance_scale": 1.0}})
    job = job_of(served, profile="draft", guidance_scale=2.0)
    assert (job.recipe["num_inference_steps"], job.recipe["guidance_scale"]) == (4, 2.0)


def test_the_price_is_the_cost_models(job_of):
    job = job_of(seed=3)
    predicted = estimate(RenderRecipe.from_dict(job.recipe), SERVED.card, SERVED.execution, CPU)
    assert (job.work_s, job.step_s) == (predicted.total_s, predicted.step_s)
    assert job.render_key == RenderRecipe.from_dict(job.recipe).render_key


def test_a_seed_is_drawn_and_kept_for_a_remix(job_of):
    job = job_of()
    assert job.request["fields"]["seed"] == job.recipe["seed"] != job_of().recipe["seed"]


def test_what_does_not_fit_is_refused_with_what_would(job_of):
    with pytest.raises(MemoryLimitError, match=r"it fits with|no plan fits"):
        job_of(replace(SERVED, memory_bytes=200 * 10**6), size="1024x1024")
    assert job_of(replace(SERVED, memory_bytes=200 * 10**6), size="64x64")


def test_a_combination_that_no_lane_would_start_is_refused(job_of):
    served = replace(SERVED, execution=ExecutionPlan(parallel=ParallelPlan(ring=2)), device_type="mps")
    with pytest.raises(UnverifiedError):
        job_of(served)


def test_an_uploaded_video_has_a_limit(job_of, tmp_path):
    import numpy as np

    write_mp4(tmp_path / "upload", np.zeros((5, 32, 32, 3), np.uint8), 15)
    data = (tmp_path / "upload").read_bytes()
    with pytest.raises(VideoError, match="input_video is 32x32"):
        job_of(files={"input_video": tmp_path / "upload"}, settings=ApiSettings(max_input_video_pixels=4000))
    (tmp_path / "upload").write_bytes(data)
    fields = {"size": "32x32", "num_frames": 5, "denoising_strength": 0.5}
    job = job_of(files={"input_video": tmp_path / "upload"}, **fields)
    assert list(job.inputs) == ["input_video"] and job.inputs["input_video"].endswith("/input_video.mp4")
    (tmp_path / "upload").write_bytes(b"no video")
    with pytest.raises(VideoError, match="input_video") as caught:
        job_of(files={"input_video": tmp_path / "upload"}, **fields)
    assert str(tmp_path) not in str(caught.value)


def test_other_weights_than_asked_for(job_of):
    known = job_of().recipe["weights_sha256"]
    assert job_of(weights_sha256=known)
    with pytest.raises(RecipeError, match="other weights"):
        job_of(weights_sha256="0" * 64)
