"""The farm as users meet it: the official client, real lanes with Wan-mini, and what happens when parts of it die.

And what an operator does while it runs: a profile comes, is used, is audited, and is rolled back.
"""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from profile_cases import speed_profile
from sakuga.cli.client import Farm
from sakuga.engine import LocalEngine, write_render
from sakuga.farm.cluster import free_ports
from sakuga.farm.local_farm import LocalFarm
from sakuga.media.files import sha256_of
from sakuga.recipe import RenderRecipe
from sakuga.tuning.figures import parse_bars

pytestmark = pytest.mark.ray

LIMIT_S = 120.0
CONFIG = {
    "lease_s": 6.0,
    "audits": {"poll_s": 0.2},
    "pools": [{"model": "wan-mini", "num_threads": 1, "scaling": {"min_lanes": 1, "max_lanes": 1}}],
}
SMALL = {"num_frames": "5", "size": "32x32", "guidance_scale": "1", "seed": "7"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("farm")


@pytest.fixture(scope="module")
def farm(data, ray_cluster):
    with LocalFarm.start(CONFIG, data, port=free_ports(1)[0], dashboard=False) as farm:
        yield farm


@pytest.fixture(scope="module")
def client(farm):
    return OpenAI(base_url=f"{farm.url}/v1", api_key=farm.api_key, max_retries=0)


def submit(client, *, steps: int = 4, **fields):
    return client.videos.create(
        prompt="A dancer.", extra_body=SMALL | {"num_inference_steps": str(steps)} | fields
    )  # fmt: skip


def until(condition, what: str):
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {LIMIT_S:.0f} s: {what}")


def at_step(farm, job, number: int):
    """Wait until the render has done so many steps."""
    for event in Farm(farm.url, farm.api_key).history(job.id):
        if event.type == "step" and int(str(event.data["step"])) >= number:
            return event
        assert event.type not in ("completed", "failed"), "it ended before"
    raise AssertionError("the stream ended")


def lane_status():
    from ray import serve

    return serve.get_deployment_handle("lanes-wan-mini", "sakuga").status.remote().result()


def ended(client, job):
    return until(lambda: (v := client.videos.retrieve(job.id)).status in ("completed", "failed") and v, "an end")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """sha256 of the video of a number of steps, as one process renders it."""
    import torch

    torch.set_num_threads(1)
    engine, folder = LocalEngine.load("wan-mini"), tmp_path_factory.mktemp("expected")

    def render(steps: int) -> str:
        recipe = RenderRecipe(
            model="wan-mini", weights_sha256=engine.model.weights_sha256, prompt="A dancer.", width=32, height=32,
            num_frames=5, num_inference_steps=steps, seed=7, guidance_scale=1.0, fps=engine.card.fps,
            flow_shift=engine.card.flow_shift,
        )  # fmt: skip
        video = engine.render(recipe)
        return sha256_of(write_render(video, engine.receipt(recipe, video), folder, f"video-{steps}").video)

    return render


def test_the_official_client_gets_the_video_that_one_process_makes(farm, client, expected, tmp_path):
    video = client.videos.create_and_poll(prompt="A dancer.", extra_body=SMALL | {"num_inference_steps": "4"})
    assert (video.status, video.progress) == ("completed", 100)
    path = tmp_path / "video.mp4"
    path.write_bytes(client.videos.download_content(video.id).read())
    assert sha256_of(path) == expected(4)


def test_a_rank_that_is_killed_costs_time_and_nothing_else(farm, client, expected, tmp_path):
    job = submit(client, steps=150)
    at_step(farm, job, 5)
    os.kill(lane_status()["pids"][0], signal.SIGKILL)
    done = ended(client, job)
    assert done.status == "completed", done.error
    (tmp_path / "video.mp4").write_bytes(client.videos.download_content(job.id).read())
    assert sha256_of(tmp_path / "video.mp4") == expected(150)
    kinds = [event.type for event in Farm(farm.url, farm.api_key).history(job.id) if event.type != "step"]
    assert kinds == ["queued", "running", "queued", "running", "completed"]


def test_a_lane_that_is_killed_is_replaced_and_its_render_goes_on(farm, client):
    from ray import serve

    job = submit(client, steps=150, seed="8")
    at_step(farm, job, 5)
    handle = serve.get_deployment_handle("lanes-wan-mini", "sakuga")
    os.kill(handle.pid.remote().result(), signal.SIGKILL)
    assert ended(client, job).status == "completed"


def test_an_urgent_job_does_not_wait_for_a_batch(farm, client):
    batch = submit(client, steps=400, priority="batch", seed="9")
    at_step(farm, batch, 3)
    urgent = submit(client, steps=2, priority="interactive", seed="10")
    assert ended(client, urgent).status == "completed"
    assert client.videos.retrieve(batch.id).status in ("queued", "in_progress")
    assert ended(client, batch).status == "completed"
    attempts = [e for e in Farm(farm.url, farm.api_key).history(batch.id) if e.type == "running"]
    assert len(attempts) == 2 and int(str(attempts[1].data["step"])) > 0, "it went on from where it was"


def test_a_cancelled_job_frees_the_lane(farm, client):
    job = submit(client, steps=1000, seed="11")
    at_step(farm, job, 3)
    client.post(f"/videos/{job.id}/cancel", cast_to=dict[str, object])
    follower = submit(client, steps=2, seed="12")
    assert ended(client, follower).status == "completed"
    with pytest.raises(Exception, match="there is no video of it"):
        client.videos.download_content(job.id)


def test_a_profile_reaches_the_running_farm_and_is_rolled_back_when_it_does_not_hold(farm):
    client, bars = Farm(farm.url, farm.api_key), parse_bars({"ref_ssim": {"min": 0.9999}})
    two_steps = {"num_inference_steps": 2, "guidance_scale": 1.0}  # against six
    client.promote(speed_profile(fields=two_steps, bars=bars, canary_share=1.0, audit_share=1.0))
    asked = {"prompt": "A dancer.", "profile": "fast"}
    for seed in range(1, 7):
        video = client.ask("POST", "/videos", asked | {"seed": seed})
        assert (video["profile_version"], video["steps"], video["size"]) == (1, 2, "32x32")

    def history() -> list[str]:
        return [event["type"] for event in client.ask("GET", "/profiles/fast")["events"]]  # ty: ignore

    until(lambda: "rolled_back" in history(), "a rollback")
    assert history()[0] == "rolled_back" and set(history()[1:-1]) == {"audited"} and 5 <= len(history()) <= 8
    (told,) = client.profiles()
    assert (told["state"], told["reason"]) == ("retired", "rolled_back")
    video = client.ask("POST", "/videos", asked | {"seed": 7})
    assert (video["profile"], video["profile_version"], video["steps"]) == ("fast", None, 6)
    assert "was rolled back" in str(video["notes"])

    def metrics() -> str:
        return httpx.get(f"{farm.url}/metrics").text

    assert 'sakuga_profile_rollbacks_total{model="wan-mini",profile="fast"} 1.0' in metrics()
    num_audited = history().count("audited")

    def references_are_gone() -> bool:
        deleted = [line for line in metrics().splitlines() if line.startswith('sakuga_jobs{state="deleted"}')]
        return bool(deleted) and float(deleted[0].split()[-1]) >= num_audited

    until(references_are_gone, "the references to go")


def test_a_farm_that_is_stopped_in_a_render_goes_on_at_its_next_start(farm, client, data, expected, tmp_path):
    job = submit(client, steps=300, seed="7")
    step = int(str(at_step(farm, job, 10).data["step"]))
    from ray import serve

    serve.delete("sakuga")
    snapshots = [path.name for path in Path(data, "objects").rglob("snapshot-*")]
    assert snapshots and int(snapshots[0].split("-")[1]) >= step
    from sakuga.farm.local_farm import farm_args
    from sakuga.farm.serving import APP_NAME, build

    port = int(farm.url.rpartition(":")[2])
    serve.run(build(farm_args(CONFIG, data, f"http://127.0.0.1:{port}/metrics")), name=APP_NAME, route_prefix="/")
    assert ended(client, job).status == "completed"
    (tmp_path / "video.mp4").write_bytes(client.videos.download_content(job.id).read())
    assert sha256_of(tmp_path / "video.mp4") == expected(300)
