"""Who is let in, and to what."""

import openai
import pytest

from api_farm import error_of, wait_for

VIDEO = {"prompt": "x", "size": "32x32"}


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer",  "Basic eDp5", "sk-sakuga-x", "Bearer sk-sakuga-wrong", "Bearer " + "a" * 9000,
     "Bearer schlüssel".encode(), "Bearer a b"],
)  # fmt: skip
def test_headers_that_open_nothing(api, header):
    headers = {} if header is None else {"authorization": header}
    response = api.anonymous().get("/v1/videos", headers=headers)
    assert response.status_code == 401
    assert error_of(response)["code"] == "E_AUTH" and error_of(response)["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == "Bearer"


def test_schemes_are_known_in_any_case_and_come_once(api, tenant):
    key = api.key(tenant)
    assert api.anonymous().get("/v1/videos", headers={"authorization": f"bearer {key}"}).status_code == 200
    twice = [("authorization", f"Bearer {key}")] * 2
    assert api.anonymous().get("/v1/videos", headers=twice).status_code == 401


def test_keys_that_are_over(api, tenant):
    assert error_of(api.http(tenant, expires_at=1.0).get("/v1/videos"))["code"] == "E_AUTH"
    key, secret = api.stores.keys.create(tenant)
    api.stores.keys.revoke(key.id)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{api.url}/v1", api_key=secret).videos.list()


def test_scopes(api, tenant):
    reader, writer = api.http(tenant, scopes=("read",)), api.http(tenant, scopes=("write",))
    admin = api.http(tenant, scopes=("admin",))
    assert reader.get("/v1/videos").status_code == 200
    assert (admin.get("/v1/videos").status_code, admin.post("/v1/videos", json=VIDEO).status_code) == (200, 200)
    video = writer.post("/v1/videos", json=VIDEO).json()["id"]
    for refused in (
        reader.post("/v1/videos", json=VIDEO),
        reader.delete(f"/v1/videos/{video}"),
        reader.post(f"/v1/videos/{video}/cancel"),
        reader.post(f"/v1/videos/{video}/remix", json={"prompt": "y"}),
        reader.post("/v1/batches", content=b"{}", headers={"content-type": "application/jsonl"}),
        reader.post("/v1/loras", files={"file": b"x"}),
        reader.get("/v1/webhooks/secret"),
        writer.get("/v1/videos"),
    ):
        assert (refused.status_code, error_of(refused)["code"]) == (403, "E_SCOPE")


def test_every_route_below_v1_wants_a_key(api):
    document = api.anonymous().get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            if path.startswith("/v1"):
                assert api.anonymous().request(method, path.replace("{", "").replace("}", "")).status_code == 401
                assert methods[method]["security"] == [{"HTTPBearer": []}]


def test_the_log_has_ids_and_no_prompts(api, tenant, caplog):
    caplog.set_level("INFO", logger="sakuga")
    key, secret = api.stores.keys.create(tenant)
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key=secret)
    client.videos.create(prompt="A secret wish.", extra_body={"num_frames": 5, "negative_prompt": "A fear."})
    mine = wait_for(lambda: [record.getMessage() for record in caplog.records if key.id in record.getMessage()])
    assert "POST /v1/videos status=200" in mine[0]
    lines = [record.getMessage() for record in caplog.records]
    assert not [line for line in lines if "secret wish" in line or "A fear" in line or secret in line]
