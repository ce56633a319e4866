"""Models."""

import openai
import pytest


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
