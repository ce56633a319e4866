"""`/v1/videos` through OpenAI's own client: every call, every state, all keys."""

import base64
import json
import time

import openai
import pytest

from api_farm import LANE, ApiFarm, error_of, png
from sakuga.api import ApiSettings
from sakuga.errors import StoreError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KEYS = {
    "id", "object", "model", "status", "progress", "created_at", "completed_at", "expires_at", "prompt", "size",
    "seconds", "remixed_from_video_id", "error",
}  # fmt: skip
SMALL = {"prompt": "A fairy dances.", "size": "32x32", "extra_body": {"num_frames": 5, "num_inference_steps": 4}}


def test_a_video_from_creation_to_its_file(api, tenant):
    client, before = api.client(tenant), int(time.time())
    with api.lane():
        video = client.videos.create_and_poll(
            prompt="A dancing fairy.", model="wan-mini", size="48x32", seconds="4", input_reference=png(),
            extra_body={"num_inference_steps": 2},
        )  # fmt: skip
    assert (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "4", "48x32")
    assert before <= video.created_at <= video.completed_at <= time.time()
    assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"


def test_the_object_has_all_keys_in_every_state(api, tenant):
    client, http = api.client(tenant), api.http(tenant)

    def seen(video_id: str) -> dict:
        response = http.get(f"/v1/videos/{video_id}")
        assert response.status_code == 200
        assert set(response.json()) >= KEYS
        assert isinstance(response.json()["seconds"], str)
        assert isinstance(response.json()["progress"], int)
        is_over = response.json()["status"] in ("completed", "failed")
        assert ("openai-poll-after-ms" in response.headers) is not is_over
        return response.json()

    ids = [client.videos.create(**SMALL).id for _ in range(3)]
    waiting = seen(ids[1])
    assert (waiting["status"], waiting["queue_position"], waiting["step"], waiting["steps"]) == ("queued", 1, 0, 4)
    assert waiting["eta_s"] > 0
    claim = api.claim()
    api.stores.renders.heartbeat(claim, 2)
    assert (seen(ids[0])["status"], seen(ids[0])["progress"], seen(ids[0])["step"]) == ("in_progress", 50, 2)
    api.publish(claim)
    done = seen(ids[0])
    assert (done["status"], done["progress"], done["error"], done["gpu_seconds"]) == ("completed", 100, None, 1.3)
    for _ in range(2):
        api.stores.renders.failed(api.claim(), "E_NAN", "the render has NaN")
    failed = seen(ids[1])
    assert (failed["status"], failed["error"]) == ("failed", {"code": "E_NAN", "message": "the render has NaN"})
    assert failed["completed_at"] is None
    http.post(f"/v1/videos/{ids[2]}/cancel")
    assert seen(ids[2])["error"]["code"] == "cancelled"


def test_a_failed_video_ends_the_poll_without_an_exception(api, tenant):
    client = api.client(tenant)
    video = client.videos.create(**SMALL)
    for _ in range(2):
        api.stores.renders.failed(api.claim(), "E_NAN", "the render has NaN")
    assert client.videos.poll(video.id).error.code == "E_NAN"


def test_what_the_client_makes_of_nested_fields(api, tenant):
    """It flattens them into names of a form; a list of objects loses its order there and is refused."""
    picture = "data:image/png;base64," + base64.b64encode(png()).decode()
    client = api.client(tenant)
    video = client.videos.create(
        prompt="x", size="32x32", extra_body={"input_reference": {"image_url": picture}, "fps": 8, "seed": None}
    )
    assert set(api.claim().inputs) == {"input_image"}
    assert video.status == "queued"
    with pytest.raises(openai.BadRequestError, match="extra_params"):
        client.videos.create(prompt="x", extra_body={"loras": [{"name": "fairy"}]})
    loras = json.dumps({"loras": [{"name": "fairy", "weight": 0.5}], "num_frames": 5})
    assert client.videos.create(prompt="x", size="32x32", extra_body={"extra_params": loras}).seconds == "0.333"


def test_lists_have_pages_in_both_orders(api, tenant):
    client = api.client(tenant)
    ids = [client.videos.create(**SMALL).id for _ in range(5)]
    assert [video.id for video in client.videos.list(limit=2)] == ids[::-1], "the client asks for page after page"
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == ids
    page = api.http(tenant).get("/v1/videos", params={"limit": 2, "after": ids[4]}).json()
    assert page["object"] == "list"
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[3], ids[2], True)
    empty = api.http(tenant).get("/v1/videos", params={"limit": 0}).json()
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], None, None)


def test_another_tenants_video_does_not_exist(api, tenant):
    video = api.client(tenant).videos.create(**SMALL)
    other = api.client(f"{tenant}-other")
    for call in (other.videos.retrieve, other.videos.delete, other.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            call(video.id)
    with pytest.raises(openai.NotFoundError):
        other.videos.remix(video.id, prompt="x")
    assert list(other.videos.list()) == []
    http = api.http(f"{tenant}-other")
    assert error_of(http.post(f"/v1/videos/{video.id}/cancel"))["code"] == "E_NOT_FOUND"
    assert http.get(f"/v1/videos/{video.id}/events").status_code == 404
    assert error_of(http.get("/v1/videos", params={"after": video.id}))["code"] == "E_NOT_FOUND"


def test_delete_is_idempotent_and_leaves_nothing(api, tenant):
    client = api.client(tenant)
    video = client.videos.create(**SMALL, input_reference=png())
    api.render()
    assert len(api.objects.names(tenant)) == 5
    for _ in range(2):
        gone = client.videos.delete(video.id)
        assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.delete("video_" + "0" * 30)
    for name in api.stores.jobs.garbage(1000):
        api.objects.delete(name)
    assert api.objects.names(tenant) == []


def test_a_video_that_is_deleted_while_it_is_rendered_stops(api, tenant):
    client = api.client(tenant)
    video = client.videos.create(**SMALL)
    claim = api.claim()
    client.videos.delete(video.id)
    assert api.stores.renders.heartbeat(claim, 1).cancel
    api.stores.renders.released(claim)


def test_cancel_and_cancel_again(api, tenant):
    video = api.client(tenant).videos.create(**SMALL)
    for _ in range(2):
        response = api.http(tenant).post(f"/v1/videos/{video.id}/cancel")
        assert (response.status_code, response.json()["status"]) == (200, "failed")
    assert api.stores.renders.claim(LANE) is None


def test_a_remix_takes_everything_but_the_prompt(api, tenant):
    client = api.client(tenant)
    first = client.videos.create(
        prompt="A fairy dances.", size="48x32", seconds="1", input_reference=png(colour="blue"),
        extra_body={"num_inference_steps": 3, "seed": 7, "loras": "fairy:0.5", "profile": "draft"},
    )  # fmt: skip
    before = api.render()
    second = client.videos.remix(first.id, prompt="A fairy sleeps.")
    assert (second.remixed_from_video_id, second.prompt, second.size, second.seconds) == (
        first.id, "A fairy sleeps.", "48x32", "1",
    )  # fmt: skip
    client.videos.delete(first.id)
    after = api.render()
    assert dict(after.recipe) == {**before.recipe, "prompt": "A fairy sleeps."}
    assert set(after.inputs) == {"input_image"} and after.inputs != before.inputs
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.videos.remix(second.id, prompt=" ")
    response = api.http(tenant).post(f"/v1/videos/{second.id}/remix", json={"prompt": "x", "seed": 3})
    assert error_of(response)["code"] == "E_PROMPT"


def test_what_newer_clients_have_and_this_farm_has_not(api, tenant):
    http = api.http(tenant)
    for path in ("edits", "extensions", "characters"):
        response = http.post(f"/v1/videos/{path}", json={"prompt": "x"})
        assert (response.status_code, error_of(response)["code"]) == (404, "E_NOT_FOUND")


def test_an_idempotency_key_gives_the_same_job(api, tenant):
    client = api.client(tenant)
    again = {"extra_headers": {"Idempotency-Key": "a"}}
    first = client.videos.create(prompt="x", size="32x32", input_reference=png(), **again)
    assert client.videos.create(prompt="x", size="32x32", input_reference=png(), **again).id == first.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.videos.create(prompt="x", size="32x32", input_reference=png(colour="green"), **again)
    assert caught.value.code == "E_KEY_REUSED"
    with pytest.raises(openai.UnprocessableEntityError):
        client.videos.remix(first.id, prompt="y", **again)
    assert client.videos.create(prompt="x", size="32x32").id != first.id
    other_key = api.client(tenant).videos.create(prompt="x", size="32x32", **again)
    assert other_key.id != first.id, "the scope is the API key"


def test_a_lost_answer_costs_no_second_job(api, tenant, monkeypatch):
    """The job is written, then the store falls silent: the answer is 200 without an ETA."""

    def silent(*_: object, **__: object) -> None:
        raise StoreError("gone")

    monkeypatch.setattr(api.stores.jobs, "place", silent)
    video = api.http(tenant).post("/v1/videos", json={"prompt": "x", "size": "32x32"})
    assert (video.status_code, video.json()["status"], video.json()["eta_s"]) == (200, "queued", None)


def test_a_store_that_fails_in_the_write_is_not_asked_again_without_a_key(api, tenant, monkeypatch):
    def silent(*_: object, **__: object) -> None:
        raise StoreError("gone")

    monkeypatch.setattr(api.stores.jobs, "submit", silent)
    http = api.http(tenant)
    response = http.post("/v1/videos", json={"prompt": "x"})
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "false")
    assert int(response.headers["retry-after"]) > 0
    response = http.post("/v1/videos", json={"prompt": "x"}, headers={"idempotency-key": "a"})
    assert (response.status_code, response.headers.get("x-should-retry")) == (503, None)


def test_pictures_by_address_only_where_that_is_allowed(api, tenant, tmp_path):
    body = {"prompt": "x", "size": "32x32", "input_reference": {"image_url": "https://127.0.0.1/a.png"}}
    assert "fetches nothing" in error_of(api.http(tenant).post("/v1/videos", json=body))["message"]
    farm = ApiFarm(tmp_path, ApiSettings(allow_image_url=True))
    try:
        response = farm.http(tenant).post("/v1/videos", json=body)
        assert (response.status_code, error_of(response)["code"]) == (400, "E_URL")
    finally:
        farm.close()
