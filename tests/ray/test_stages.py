"""Encoding and decoding on replicas of their own: the same video, and the denoising rank holds the DiT only."""

import pytest
from ray import serve

from sakuga.engine import LocalEngine, write_render
from sakuga.engine.session import InputFiles
from sakuga.farm.pools import PoolArgs, StageArgs
from sakuga.farm.ranks import RankSet
from sakuga.farm.stages import SplitSession, StageReplica
from sakuga.media import image_sha256, read_video
from sakuga.quality import psnr
from sakuga.recipe import ImageRef, LoraRef, RenderRecipe

pytestmark = pytest.mark.ray

POOL = PoolArgs.model_validate({"model": "wan-mini", "num_threads": 1, "encode": {"gpus": 0}, "decode": {"gpus": 0}})


@pytest.fixture
def session(ray_cluster):
    handles = {}
    for stage in ("encode", "decode"):
        app = serve.deployment(name=stage, ray_actor_options={"num_cpus": 0.5})(StageReplica).bind(
            POOL, stage, StageArgs(gpus=0)
        )
        handles[stage] = serve.run(app, name=f"stage-{stage}", route_prefix=None)
    denoiser = RankSet(POOL.rank_spec())
    denoiser.start()
    yield SplitSession(denoiser, encoder=handles["encode"], decoder=handles["decode"])
    denoiser.stop()
    serve.shutdown()


def test_three_processes_make_the_video_that_one_makes(session, tmp_path):
    from PIL import Image

    from sakuga.engine.resolve import located
    from sakuga.wan.catalogue import card

    picture = tmp_path / "photo.png"
    Image.new("RGB", (32, 32), (200, 120, 40)).save(picture)
    found = located(card("wan-mini"))
    fairy = next(iter(found.lora_sha256.values()))
    recipe = RenderRecipe(
        model="wan-mini", weights_sha256=found.sha256, prompt="A dancer.", width=32, height=32, num_frames=5,
        num_inference_steps=4, seed=1, loras=(LoraRef(sha256=fairy),),
        images=(ImageRef(role="input_image", sha256=image_sha256(Image.open(picture))),),
    )  # fmt: skip
    assert POOL.rank_spec().stages == ("denoise",)
    at = session.begin(recipe, InputFiles(images={"input_image": picture}))
    while not at.is_done:
        at = session.step(at)
    out = tmp_path / "out"
    out.mkdir()
    receipt = session.finish(at, out)
    assert receipt["key"] == recipe.render_key
    engine = LocalEngine.load("wan-mini")
    from sakuga.engine import RenderInputs

    lora = found.lora_dir / next(name for name, sha256 in found.lora_sha256.items() if sha256 == fairy)
    video = engine.render(recipe, RenderInputs(images={"input_image": Image.open(picture)}, lora_paths=(lora,)))
    alone = write_render(video, engine.receipt(recipe, video), tmp_path / "alone", "video").video
    assert psnr(read_video(out / "video.mp4"), read_video(alone)).mean_db > 45
