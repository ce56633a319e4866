"""Renders that are driven by paths and plain values: the same video, and no step of another render."""

import sys
from dataclasses import replace

import pytest

from sakuga.engine import LocalEngine, RenderInputs, write_render
from sakuga.engine.driven import EngineSession
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.session import InputFiles, Progress
from sakuga.errors import ImageError, LoraError, SakugaError
from sakuga.media import image_sha256, load_image
from sakuga.media.files import sha256_of
from sakuga.recipe import ImageRef, LoraRef, RenderRecipe
from sakuga.wan.memory import MemoryPlan

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine():
    return LocalEngine.load("wan-mini")


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.new("RGB", (32, 32), (200, 120, 40)).save(path)
    return path


@pytest.fixture
def recipe(engine, picture) -> RenderRecipe:
    return RenderRecipe(
        model="wan-mini", weights_sha256=engine.model.weights_sha256, prompt="A dancer.", width=32, height=32,
        num_frames=5, num_inference_steps=4, seed=1,
        images=(ImageRef(role="input_image", sha256=image_sha256(load_image(picture))),),
    )  # fmt: skip


def to_the_end(session: EngineSession, at: Progress, folder):
    while not at.is_done:
        at = session.step(at)
    return session.finish(at, folder)


def test_by_paths_it_is_the_same_video(engine, recipe, picture, tmp_path):
    loads = []
    session = EngineSession(lambda precision, execution: loads.append(precision) or engine)
    session.warm_up("fp32")
    files = InputFiles(images={"input_image": picture})
    at = session.step(session.begin(recipe, files))
    session.snapshot(at, tmp_path / "state")
    receipt = to_the_end(session, session.begin(recipe, files, tmp_path / "state"), tmp_path)
    assert (loads, receipt["key"]) == (["fp32"], recipe.render_key)
    expected = engine.render(recipe, RenderInputs(images={"input_image": load_image(picture)}))
    other = write_render(expected, {}, tmp_path / "direct", "video")
    assert sha256_of(tmp_path / "video.mp4") == sha256_of(other.video)


def test_a_step_of_another_render_is_refused(engine, recipe, picture):
    session = EngineSession(lambda precision, execution: engine)
    with pytest.raises(SakugaError, match="nothing is under way"):
        session.step(Progress(step=0, num_steps=4))
    at = session.begin(recipe, InputFiles(images={"input_image": picture}))
    session.step(at)
    with pytest.raises(SakugaError, match="it is at step 1"):
        session.step(at)


def test_contents_must_be_those_of_the_recipe(engine, recipe, picture):
    session = EngineSession(lambda precision, execution: engine)
    other = replace(recipe, images=(ImageRef(role="input_image", sha256="0" * 64),))
    with pytest.raises(ImageError, match="not the one of the recipe"):
        session.begin(other, InputFiles(images={"input_image": picture}))
    with pytest.raises(LoraError, match="upload it"):
        session.begin(replace(recipe, loras=(LoraRef(sha256="0" * 64),)), InputFiles(images={"input_image": picture}))


def test_after_out_of_memory_it_loads_smaller_until_there_is_nothing_smaller(engine):
    loads = []
    session = EngineSession(
        lambda precision, execution: loads.append(str(execution.memory)) or engine,
        ExecutionPlan(memory=MemoryPlan.parse("resident")),
    )
    for _ in range(3):
        session.warm_up("fp32")
        may = session.shrink()
    assert (loads, may) == (["resident", "components", "disk"], False)


def test_whoever_only_drives_imports_no_pytorch():
    import subprocess

    code = "import sys, sakuga.farm.lane, sakuga.engine.simulated; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
