"""Webhooks' routes: the secret, the deliveries, a replay."""

from api_farm import error_of

VIDEO = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 2}
URL = "https://hooks.example.com/videos"


def test_from_a_video_to_its_message(api, tenant):
    http = api.http(tenant)
    secret = http.get("/v1/webhooks/secret").json()["secret"]
    assert secret.startswith("whsec_") and http.get("/v1/webhooks/secret").json()["secret"] == secret
    assert api.http(f"{tenant}-other").get("/v1/webhooks/secret").json()["secret"] != secret
    video = http.post("/v1/videos", json=VIDEO | {"webhook_url": URL}).json()
    assert http.get("/v1/webhooks/deliveries").json()["data"] == []
    api.render()
    (told,) = http.get("/v1/webhooks/deliveries").json()["data"]
    assert (told["video_id"], told["url"], told["state"], told["type"]) == (
        video["id"], URL, "pending", "video.completed",
    )  # fmt: skip
    assert api.stores.webhooks.due(10, 60.0)
    api.stores.webhooks.give_up(told["id"], 500)
    (failed,) = http.get("/v1/webhooks/deliveries", params={"only_failed": True}).json()["data"]
    assert (failed["state"], failed["status"]) == ("failed", 500)
    assert http.post(f"/v1/webhooks/deliveries/{told['id']}/replay").json()["state"] == "pending"
    assert http.get("/v1/webhooks/deliveries", params={"only_failed": True}).json()["data"] == []
    other = api.http(f"{tenant}-other").post(f"/v1/webhooks/deliveries/{told['id']}/replay")
    assert (other.status_code, error_of(other)["code"]) == (404, "E_NOT_FOUND")
