"""Profiles over HTTP: promoted by an admin, listed, activated, retired; what cannot be rendered is refused."""

import pytest

from api_farm import PROFILES, error_of
from profile_cases import SIZE, speed_profile
from sakuga.cli.client import Farm
from sakuga.jobstore import NewAudit, NewJob
from sakuga.tuning.figures import Bar


@pytest.fixture
def admin(api, tenant):
    """A client of an admin; what it promoted is gone after the test."""
    with api.http(tenant, scopes=("read", "write", "admin")) as client:
        yield client
    for entry in api.stores.profiles.current("wan-mini"):
        api.stores.profiles.retire(entry.id)


def promoted(admin, **changes: object) -> dict:
    answer = admin.post("/v1/profiles", json=speed_profile(**changes).as_dict())
    assert answer.status_code == 200, answer.text
    return answer.json()


def listed(admin) -> list[tuple]:
    data = admin.get("/v1/profiles").json()["data"]
    return [(each["name"], each["version"], each["state"]) for each in data if each["reason"] is None]


def test_a_promoted_profile_is_listed_with_what_it_rests_on(api, tenant):
    farm = Farm(api.url, api.key(tenant, scopes=("read", "admin")))
    entry = farm.promote(speed_profile("listed"))
    assert farm.promote(speed_profile("listed")) == entry
    assert (entry["version"], entry["state"], entry["canary_share"], entry["tier"]) == (1, "canary", 0.1, "standard")
    assert entry["size"] == SIZE and entry["measured"]["speedup"] == 2.0
    assert entry["audits"] == {"passed": 0, "failed": 0, "open": 0}
    assert "owner" not in entry, "another tenant's name is nobody's business"
    assert entry in farm.profiles()
    farm.ask("DELETE", f"/profiles/{entry['id']}")
    assert entry["name"] not in [each["name"] for each in farm.profiles()]


def test_the_life_of_a_profile(admin):
    first = promoted(admin, name="draft")
    assert listed(admin) == [("draft", 1, "canary")], "it takes the place of the model's own"
    refused = admin.post("/v1/profiles", json=speed_profile("draft", fields={"num_inference_steps": 2}).as_dict())
    assert refused.status_code == 409 and error_of(refused)["code"] == "E_CONFLICT"
    assert "version 1 is still tried on 10% of the requests" in error_of(refused)["message"]
    assert admin.post(f"/v1/profiles/{first['id']}/activate").json()["state"] == "active"
    second = promoted(admin, name="draft", fields={"num_inference_steps": 2})
    assert listed(admin) == [("draft", 1, "active"), ("draft", 2, "canary")]
    admin.post(f"/v1/profiles/{second['id']}/activate")
    retired = admin.delete(f"/v1/profiles/{second['id']}").json()
    assert (retired["state"], retired["reason"]) == ("retired", "by_hand")
    assert listed(admin) == [("draft", 1, "active")]
    told = admin.get("/v1/profiles/draft").json()
    assert [(each["version"], each["state"]) for each in told["data"]][:2] == [(2, "retired"), (1, "active")]
    assert [(event["version"], event["type"]) for event in told["events"]][::-1] == [
        (1, "promoted"), (1, "activated"), (2, "promoted"), (1, "retired"), (2, "activated"), (2, "retired"),
        (1, "activated"),
    ]  # fmt: skip
    admin.delete(f"/v1/profiles/{first['id']}")
    assert listed(admin) == [("draft", None, "active")] and PROFILES["draft"], "the model's own is back"


def test_only_an_admin_changes_profiles(api, tenant, admin):
    entry, user = promoted(admin, name="guarded"), api.http(tenant)
    for answer in (
        user.post("/v1/profiles", json=speed_profile("other").as_dict()),
        user.post(f"/v1/profiles/{entry['id']}/activate"),
        user.delete(f"/v1/profiles/{entry['id']}"),
    ):
        assert answer.status_code == 403 and error_of(answer)["code"] == "E_SCOPE"
    assert ("guarded", 1, "canary") in listed(user)


def test_what_there_is_not(admin):
    for answer in (
        admin.get("/v1/profiles/none"), admin.delete("/v1/profiles/none"), admin.post("/v1/profiles/none/activate"),
    ):  # fmt: skip
        assert answer.status_code == 404 and error_of(answer)["code"] == "E_NOT_FOUND"


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"model": "wan-2"}, "model 'wan-2' is not served by this farm"),
        ({"width": 33}, "33x32 is not a multiple of 16"),
        ({"num_frames": 6}, "6 frames"),
        ({"fields": {"loras": ["fairie:0.8"]}}, "'fairie', which is no id of a LoRA"),
        ({"reference": {"loras": ["lora_00"]}}, "there is no LoRA 'lora_00'"),
        ({"fields": {"loras": ["a/b.safetensors"]}}, "loras has a path"),
        ({"fields": {"guidance_scale_2": 2.0}}, "wan-mini has one"),
        ({"bars": (Bar(figure="seconds", maximum=1.0),)}, "no figure that an audit can measure"),
    ],
)
def test_what_no_lane_could_render_is_refused(admin, changes, told):
    answer = admin.post("/v1/profiles", json=speed_profile("refused", **changes).as_dict())
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["code"] == "E_PROFILE" and told in error_of(answer)["message"]


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"fields": {"prompt": "a cat"}}, "E_PROFILE"), ({"tier": ["draft"]}, "E_PROFILE"),
        ({"bars": {"beauty": {"min": 1}}}, "E_GATE"), ({"speed": 3}, "E_PROFILE"), ({"name": "a/b"}, "E_RECIPE"),
        ({"canary_share": "1"}, "E_PROFILE"),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_refused(admin, changes, code):
    answer = admin.post("/v1/profiles", json=speed_profile().as_dict() | changes)
    assert answer.status_code == 400 and error_of(answer)["code"] == code, answer.text


def test_prometheus_sees_audits_and_rollbacks(api, admin):
    entry = promoted(admin, name="watched")
    for number, passed in enumerate((True, True, False)):
        job = NewJob(
            tenant="app", render_key=f"watched-{number}", model="wan-mini", recipe={}, request={}, num_steps=1,
            work_s=1.0, audit=NewAudit(profile_id=entry["id"], reference={}),
        )  # fmt: skip
        api.stores.jobs.submit(job)
        api.stores.audits.ended(api.stores.audits.open()[0].id, passed, {"ref_ssim": 0.8}, [])
    api.stores.profiles.retire(entry["id"], "rolled_back")
    lines = api.anonymous().get("/metrics").text.splitlines()
    label, counted = 'model="wan-mini",profile="watched"', 'model="wan-mini",passed="{}",profile="watched"'
    for line in (
        f"sakuga_profile_audits_total{{{counted.format('true')}}} 2.0",
        f"sakuga_profile_audits_total{{{counted.format('false')}}} 1.0",
        f"sakuga_profile_rollbacks_total{{{label}}} 1.0",
        f'sakuga_profile_state{{{label},state="rolled_back"}} 1.0',
        f'sakuga_profile_state{{{label},state="active"}} 0.0',
    ):
        assert line in lines
    assert not any(entry["id"] in line for line in lines)
    (told,) = [each for each in admin.get("/v1/profiles").json()["data"] if each["name"] == "watched"]
    assert (told["reason"], told["audits"]) == ("rolled_back", {"passed": 2, "failed": 1, "open": 0})
