"""Models and profiles."""

import openai
import pytest

from api_farm import PROFILES


def test_models_through_openais_client(api, tenant):
    client = api.client(tenant)
    models = list(client.models.list())
    assert [(model.id, model.object, model.owned_by) for model in models] == [("wan-mini", "model", "sakuga")]
    assert client.models.retrieve("wan-mini").id == "wan-mini"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")


def test_what_a_card_fills_in_is_told(api, tenant):
    model = api.http(tenant).get("/v1/models/wan-mini").json()
    assert (model["defaults"]["num_frames"], model["defaults"]["fps"], model["loras"]) == (
        33,
        15,
        ["fairy", "fast4", "fast8"],
    )
    assert "i2v" in model["tasks"]


def test_profiles_of_the_model_and_promoted_ones(api, tenant):
    http = api.http(tenant)
    first = http.get("/v1/profiles").json()["data"]
    assert [(each["name"], each["version"], each["fields"]) for each in first] == [("draft", None, PROFILES["draft"])]
    entry = api.stores.profiles.add("wan-mini", "draft", {"num_inference_steps": 6}, {"ssim": 0.9})
    (promoted,) = http.get("/v1/profiles").json()["data"]
    assert (promoted["version"], promoted["measured"]) == (entry.version, {"ssim": 0.9})
    video = http.post("/v1/videos", json={"prompt": "x", "size": "32x32", "profile": "draft"}).json()
    assert (video["steps"], video["profile"]) == (6, "draft")
    api.stores.profiles.retire(entry.id)
    assert http.get("/v1/profiles").json()["data"] == first
