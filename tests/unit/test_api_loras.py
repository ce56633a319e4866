"""LoRAs: uploaded, checked before anything is kept, used by id."""

import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from api_farm import error_of
from sakuga.recipe import RenderRecipe

VIDEO = {"prompt": "x", "size": "32x32", "num_frames": 5, "num_inference_steps": 4}
Q = "blocks.0.self_attn.q"


def lora(path, width: int = 192, rank: int = 4, name: str = Q, metadata=None, **tensors):
    """A small one for the mini's DiT; `tensors` take the place of its own."""
    own = {"lora_A": torch.ones(rank, width), "lora_B": torch.ones(width, rank)} | tensors
    save_file({f"{name}.{part}.weight": tensor for part, tensor in own.items()}, path, metadata)
    return path


def upload(http, path, **fields):
    with path.open("rb") as file:
        return http.post("/v1/loras", files={"file": ("lora.safetensors", file)}, data=fields)


def test_from_upload_to_a_render_and_out(api, tenant, tmp_path):
    http = api.http(tenant)
    told = upload(http, lora(tmp_path / "a"), name="mine", model="wan-mini")
    assert told.status_code == 200, told.text
    entry = told.json()
    assert (entry["object"], entry["name"], entry["model"], entry["bytes"]) == (
        "lora", "mine", "wan-mini", (tmp_path / "a").stat().st_size,
    )  # fmt: skip
    assert entry["passport"]["ranks"] == [4]
    assert http.get(f"/v1/loras/{entry['id']}").json() == entry
    assert [each["id"] for each in http.get("/v1/loras").json()["data"]] == [entry["id"]]
    assert upload(http, lora(tmp_path / "a")).json()["id"] == entry["id"], "the same bytes"
    answer = http.post("/v1/videos", json=VIDEO | {"loras": [{"name": entry["id"], "weight": 0.5}, "fairy"]})
    assert answer.status_code == 200, answer.text
    claim = api.claim()
    refs = RenderRecipe.from_dict(claim.recipe).loras
    assert (refs[0].sha256, refs[0].weight, len(refs)) == (entry["sha256"], 0.5, 2)
    name = claim.inputs[f"lora:{entry['sha256']}"]
    assert name.startswith(f"{tenant}/loras/") and len(claim.inputs) == 1, "fairy comes with the model"
    api.objects.get(name, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "a").read_bytes()
    assert http.delete(f"/v1/loras/{entry['id']}").json()["deleted"] is True
    assert http.delete(f"/v1/loras/{entry['id']}").status_code == 404
    assert error_of(http.post("/v1/videos", json=VIDEO | {"loras": [entry["id"]]}))["code"] == "E_NOT_FOUND"
    api.publish(claim)


def test_another_tenants_lora_does_not_exist(api, tenant, tmp_path):
    mine = upload(api.http(tenant), lora(tmp_path / "a")).json()["id"]
    http = api.http(f"{tenant}-other")
    for response in (
        http.get(f"/v1/loras/{mine}"),
        http.delete(f"/v1/loras/{mine}"),
        http.post("/v1/videos", json=VIDEO | {"loras": [mine]}),
    ):
        assert (response.status_code, error_of(response)["code"]) == (404, "E_NOT_FOUND")


def a_pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))
    return path


def with_alpha(path, alpha: float):
    tensors = {f"{Q}.lora_A.weight": torch.ones(4, 192), f"{Q}.lora_B.weight": torch.ones(192, 4)}
    save_file(tensors | {f"{Q}.alpha": torch.tensor(alpha)}, path)
    return path


def cut(path):
    lora(path)
    path.write_bytes(path.read_bytes()[:-10])
    return path


BAD = {
    "62 a pickle": a_pickle,
    "62 nothing": lambda path: path.touch() or path,
    "62 cut off": cut,
    "63 of another model's width": lambda path: lora(path, width=1536),
    "63 of another architecture": lambda path: lora(path, name="down_blocks.0.attentions.0.to_q"),
    "63 rank 0": lambda path: lora(path, rank=0),
    "63 alpha NaN": lambda path: with_alpha(path, float("nan")),
    "NaN inside": lambda path: lora(path, lora_B=torch.full((192, 4), float("nan"))),
    "a part missing": lambda path: save_file({f"{Q}.lora_A.weight": torch.ones(4, 192)}, path) or path,
    "a passport that lies": lambda path: lora(path, metadata={"sakuga.passport": '{"num_inference_steps": 0}'}),
}


@pytest.mark.parametrize("make", BAD.values(), ids=list(BAD))
def test_what_does_not_fit_is_not_kept(api, tenant, tmp_path, make):
    http = api.http(tenant)
    response = upload(http, make(tmp_path / "bad"), name="mine")
    assert (response.status_code, error_of(response)["code"]) == (400, "E_LORA"), response.text
    assert "request-" not in error_of(response)["message"], "where files lie is nobody's business"
    assert http.get("/v1/loras").json()["data"] == [] and api.objects.names(tenant) == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"model": "sd-1.5"}, "E_MODEL"), ({"name": "../../secret"}, "E_RECIPE"), ({"nam": "x"}, "E_RECIPE")],
)
def test_fields_of_an_upload(api, tenant, tmp_path, fields, code):
    assert error_of(upload(api.http(tenant), lora(tmp_path / "a"), **fields))["code"] == code


def test_an_upload_without_a_file(api, tenant):
    http = api.http(tenant)
    assert error_of(http.post("/v1/loras", files={"name": (None, "x")}))["code"] == "E_BODY"
    assert error_of(http.post("/v1/loras", json={"name": "x"}))["code"] == "E_BODY"
    assert error_of(http.post("/v1/loras", files={"fil": ("a", b"x")}))["code"] == "E_RECIPE"


@pytest.mark.parametrize("kind", ["form", "json"])
def test_text_beside_a_file_is_kept_in_memory_and_has_a_limit_of_its_own(api, tenant, kind):
    name = "a" * 100_000
    sent = {"files": {"name": (None, name)}} if kind == "form" else {"json": {"name": name}}
    response = api.http(tenant).post("/v1/loras", **sent)
    assert (response.status_code, error_of(response)["code"]) in ((400, "E_BODY"), (413, "E_TOO_LARGE"))


def test_an_acceleration_lora_sets_the_schedule_that_is_left_open(api, tenant, tmp_path):
    http = api.http(tenant)
    fast = lora(tmp_path / "fast", metadata={"sakuga.passport": '{"num_inference_steps": 3, "flow_shift": 7.0}'})
    entry = upload(http, fast).json()
    assert entry["passport"]["num_inference_steps"] == 3
    given = {name: value for name, value in VIDEO.items() if name != "num_inference_steps"}
    video = http.post("/v1/videos", json=given | {"loras": [entry["id"]]}).json()
    assert video["steps"] == 3
    assert [note for note in video["notes"] if note.startswith("num_inference_steps is 3")]


def test_a_file_that_nobody_asked_for_lately_goes_from_this_machine(api, tenant, tmp_path):
    http = api.http(tenant)
    entry = upload(http, lora(tmp_path / "a", lora_A=torch.full((4, 192), 0.25))).json()
    shutil.rmtree(api.scratch / "loras", ignore_errors=True)
    assert http.post("/v1/videos", json=VIDEO | {"loras": [entry["id"]]}).status_code == 200
    assert [path.stem for path in (api.scratch / "loras").iterdir()] == [entry["sha256"]]
    (kept,) = (api.scratch / "loras").iterdir()
    os.utime(kept, (0, 0))
    other = upload(http, lora(tmp_path / "b", lora_A=torch.full((4, 192), 0.5))).json()
    assert http.post("/v1/videos", json=VIDEO | {"loras": [other["id"]]}).status_code == 200
    assert [path.stem for path in (api.scratch / "loras").iterdir()] == [other["sha256"]]
