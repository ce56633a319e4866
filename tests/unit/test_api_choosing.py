"""From a word about quality to a recipe: the registry, LoRAs of another tenant, notes, audits, remixes."""

import secrets
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete

import sakuga
from api_farm import lines
from profile_cases import SIZE, speed_profile
from sakuga.api import ApiDeps, ServedModel
from sakuga.api.body import Sent
from sakuga.api.fields import wish_of
from sakuga.api.preparing import prepare
from sakuga.cost import find_device
from sakuga.errors import ConflictError, ProfileError, RecipeError
from sakuga.jobstore import AUDIT_TENANT, NewJob, open_stores
from sakuga.jobstore.schema import loras
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects
from sakuga.wan.catalogue import card

WEIGHTS = Path(sakuga.__file__).parent / "wan" / "mini" / "weights"
SERVED = ServedModel(card=card("wan-mini"), device=find_device("h100"))


class Requests:
    """Jobs of requests, without HTTP."""

    def __init__(self, folder) -> None:
        self.stores = open_stores(f"sqlite:///{folder / 'jobs.sqlite'}")
        self.folder = folder
        self.deps = ApiDeps(
            stores=self.stores, objects=FolderObjects(folder / "objects"), models={"wan-mini": SERVED}, scratch=folder
        )

    def promoted(self, name: str = "fast", *, active: bool = True, **changes: object):
        profile = speed_profile(name, **changes)
        entry = self.stores.profiles.promote("team", profile.as_dict(), profile.content_sha256)
        return self.stores.profiles.activate(entry.id) if active else entry

    def __call__(self, *, seed_default: int | None = None, **fields: object) -> NewJob:
        wish = wish_of(Sent(fields={"prompt": "x"} | fields))
        return prepare(self.deps, "app", wish, self.folder, default_seed=seed_default).job


@pytest.fixture
def ask(tmp_path):
    return Requests(tmp_path)


def told(job: NewJob) -> tuple:
    return job.request["profile"], job.request["profile_version"], job.recipe["num_inference_steps"]


def test_a_promoted_profile_reaches_the_next_request(ask):
    with pytest.raises(ProfileError, match="profile 'fast' is none of wan-mini; it has none"):
        ask(profile="fast")
    ask.promoted()
    job = ask(profile="fast")
    recipe = RenderRecipe.from_dict(job.recipe)
    assert told(job) == ("fast", 1, 3)
    assert (recipe.width, recipe.height, recipe.num_frames) == (32, 32, 5), "a size that is left open is the profile's"
    own = ask(profile="fast", num_inference_steps=4, step_cache="teacache:0.1", tiling={})
    assert told(own) == ("fast", 1, 4), "what the request says wins"
    assert RenderRecipe.from_dict(own.recipe).guidance_scale == 1.0 and own.recipe["step_cache"]
    with pytest.raises(ProfileError, match="for 32x32 and 5 frames"):
        ask(profile="fast", seconds="1")
    assert ask(profile="fast", num_frames=5, size="32x32").recipe["num_inference_steps"] == 3
    with pytest.raises(ProfileError, match="did you mean 'fast'"):
        ask(profile="fats")


def test_a_profile_of_another_model_is_refused_with_its_model(ask):
    other = replace(SERVED, card=replace(card("wan-mini"), name="wan-other"))
    ask.deps = replace(ask.deps, models={"wan-mini": SERVED, "wan-other": other})
    ask.promoted()
    with pytest.raises(ProfileError, match="profile 'fast' is for wan-mini; ask for that model"):
        ask(profile="fast", model="wan-other")


def test_a_profile_that_was_rolled_back_becomes_its_reference(ask):
    entry = ask.promoted()
    ask.stores.profiles.retire(entry.id, "rolled_back")
    job = ask(profile="fast")
    assert told(job) == ("fast", None, 6)
    assert job.request["notes"][0] == "profile fast@1 was rolled back; this is rendered as its reference"
    assert job.audit is None
    ask.stores.profiles.activate(entry.id)
    ask.stores.profiles.retire(entry.id)
    with pytest.raises(ProfileError, match="is none of"):
        ask(profile="fast")


def test_words_for_the_quality(ask):
    ask.promoted()
    job = ask(quality="draft", **SIZE)
    assert told(job) == ("fast", 1, 3) and job.request["quality"] == "draft"
    assert told(ask(quality="best", **SIZE)) == (None, None, 20)
    at_the_cards_size = ask(quality="standard")
    assert told(at_the_cards_size) == (None, None, 20)
    assert "no standard profile for 128x128 and 33 frames" in at_the_cards_size.request["notes"][0]
    with pytest.raises(RecipeError, match="profile and quality both"):
        ask(quality="draft", profile="fast")
    with pytest.raises(RecipeError, match="quality is 'drafd'"):
        ask(quality="drafd")


def test_a_deadline_is_met_with_a_profile_when_the_queue_is_long(ask):
    ask.promoted(measured={"ref_ssim": 0.9, "seconds": 1.0, "reference_seconds": 2.0})
    plain = ask(**SIZE)
    assert told(ask(deadline_s=2 * plain.work_s, **SIZE)) == (None, None, 20)
    job = ask(deadline_s=0.75 * plain.work_s, **SIZE)
    assert told(job) == ("fast", 1, 3) and "fast@1 makes it" in job.request["notes"][0]
    ask.stores.jobs.submit(replace(plain, work_s=10 * plain.work_s, render_key="f" * 64))
    job = ask(deadline_s=2 * plain.work_s, **SIZE)
    assert told(job) == ("fast", 1, 3) and "nothing makes it" in job.request["notes"][0]
    urgent = ask(deadline_s=2 * plain.work_s, priority="interactive", **SIZE)
    assert told(urgent) == (None, None, 20), "it goes first"


def lora_entry(ask, tenant: str):
    path = WEIGHTS / "loras" / "fairy.safetensors"
    name = f"{tenant}/loras/1/fairy.safetensors"
    stored = ask.deps.objects.put(name, path)
    return ask.stores.loras.add(
        tenant, name="mine", sha256=stored.sha256, num_bytes=stored.num_bytes, object_name=name,
        passport={"model": "wan-mini"},
    )  # fmt: skip


def test_every_tenant_can_use_the_loras_of_a_profile(ask):
    entry = lora_entry(ask, "team")
    ask.promoted(fields={"num_inference_steps": 3, "loras": [f"{entry.id}:0.8"]}, reference={"num_inference_steps": 6})
    job = ask(profile="fast", loras="fast4")
    assert [lora["weight"] for lora in job.recipe["loras"]] == [1.0, 0.8], "the request's own come first"
    assert job.inputs == {f"lora:{entry.sha256}": entry.object_name}
    assert job.audit is None
    with pytest.raises(ConflictError, match="fast"):
        ask.stores.loras.delete("team", entry.id)
    with ask.stores.jobs.database.writing() as connection:  # as if it had gone while the profile was promoted
        connection.execute(delete(loras))
    with pytest.raises(ProfileError, match="names a LoRA that was deleted"):
        ask(profile="fast")


def test_a_share_of_the_renders_asks_for_an_audit(ask):
    ask.promoted(audit_share=1.0)
    job = ask(profile="fast", seed=7)
    reference = NewJob(**job.audit.reference)
    assert (reference.tenant, reference.priority) == (AUDIT_TENANT, "batch")
    assert RenderRecipe.from_dict(reference.recipe) == replace(
        RenderRecipe.from_dict(job.recipe), num_inference_steps=6
    ), "nothing else differs"
    assert ask(profile="fast", guidance_scale=2.0).audit is None, "it is not the profile any more"
    ask.deps = replace(ask.deps, audit_share=lambda: 0.0)
    assert ask(profile="fast", seed=7).audit is None


def test_the_same_request_is_the_same_render_while_a_version_is_in_canary(ask):
    ask.promoted()
    ask.promoted(fields={"num_inference_steps": 2}, canary_share=0.5, active=False)
    seen = {seed: told(ask(profile="fast", seed=seed)) for seed in range(16)}
    assert {version for _, version, _ in seen.values()} == {1, 2}
    assert seen == {seed: told(ask(profile="fast", seed_default=seed)) for seed in range(16)}


def test_batches_and_remixes_choose_alike(api, tenant):
    profile = speed_profile(f"remixed-{secrets.token_hex(4)}")
    entry = api.stores.profiles.promote(tenant, profile.as_dict(), profile.content_sha256)
    api.stores.profiles.activate(entry.id)
    http = api.http(tenant)
    first = http.post("/v1/videos", json={"prompt": "one", "profile": profile.name}).json()
    assert (first["profile"], first["profile_version"], first["steps"], first["size"]) == (profile.name, 1, 3, "32x32")
    batch = http.post(
        "/v1/batches", headers={"content-type": "application/jsonl"},
        content=lines({"prompt": "two", "profile": profile.name}, {"prompt": "three", "profile": "none"}),
    ).json()  # fmt: skip
    assert [error["code"] for error in batch["errors"]] == ["E_PROFILE"]
    (row,) = http.get("/v1/videos", params={"batch_id": batch["id"]}).json()["data"]
    assert (row["profile_version"], row["steps"]) == (1, 3)
    api.stores.profiles.retire(entry.id, "rolled_back")
    again = http.post(f"/v1/videos/{first['id']}/remix", json={"prompt": "four"}).json()
    assert (again["profile"], again["profile_version"], again["steps"]) == (profile.name, None, 6), again
    refused = http.post("/v1/videos", json={"prompt": "x", "profile": profile.name, "size": "64x64"})
    assert refused.status_code == 200, "who asks for another size of what is no profile any more gets the model's"
