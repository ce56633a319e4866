"""`sakuga profiles`: the list, one profile's life, retiring and activating; `submit` with a profile or a quality."""

import json
import secrets

import pytest

from profile_cases import speed_profile
from sakuga.recipe import RenderRecipe


@pytest.fixture
def name(api):
    """Of a profile of this test's own."""
    yield (made := f"fast-{secrets.token_hex(4)}")
    for entry in api.stores.profiles.history(made):
        api.stores.profiles.retire(entry.id)


@pytest.fixture
def sakuga(sakuga, api, tenant, monkeypatch):
    """As an admin."""
    monkeypatch.setenv("SAKUGA_API_KEY", api.key(tenant, scopes=("read", "write", "admin")))
    monkeypatch.setattr("sakuga.cli.profiles.age_of", lambda _: "5 s")
    return sakuga


def promoted(api, name: str, **changes: object):
    profile = speed_profile(name, **changes)
    return api.stores.profiles.promote("team", profile.as_dict(), profile.content_sha256)


def row(out: str, name: str) -> str:
    (line,) = [line for line in out.splitlines() if line.startswith(name)]
    return " ".join(line.split())


def test_the_list_says_how_each_profile_fares(api, sakuga, name):
    entry = promoted(api, name)
    code, out, err = sakuga("profiles")
    assert code == 0, err
    assert row(out, name) == (
        f"{name} 1 canary 10% 32x32, 5 frames standard 2.0x ref_ssim 0.900 0 passed, 0 failed promoted 5 s ago"
    )
    api.stores.profiles.retire(entry.id, "rolled_back", {"faults": ["ref_ssim is 0.4, at least 0.5 is asked for"]})
    _, out, _ = sakuga("profiles")
    assert " rolled back 32x32" in row(out, name)
    assert row(out, name).endswith("rolled back 5 s ago: ref_ssim is 0.4, at least 0.5 is asked for")
    _, out, _ = sakuga("profiles", "--json")
    (told,) = [each for each in json.loads(out)["data"] if each["name"] == name]
    assert (told["reason"], told["last_event"]["type"]) == ("rolled_back", "rolled_back")
    assert " with the model active any - - - " in row(sakuga("profiles")[1], "draft")


def test_the_life_of_one_profile(api, sakuga, name):
    first = promoted(api, name)
    code, out, _ = sakuga("profiles", "activate", name)
    assert (code, out) == (0, f"{name}@1 of wan-mini is active\n")
    promoted(api, name, fields={"num_inference_steps": 2})
    assert sakuga("profiles", "retire", name)[1] == f"{name}@2 of wan-mini is retired\n", "the canary first"
    assert sakuga("profiles", "activate", f"{name}@2")[1] == f"{name}@2 of wan-mini is active\n"
    _, out, _ = sakuga("profiles", "show", name)
    assert "2 active" in row(out.split("version 2 ")[0], f"{name}  2") and "version 1 promoted 5 s ago" in out
    code, out, _ = sakuga("profiles", "retire", f"{name}@1", "--json")
    assert json.loads(out)["id"] == first.id
    sakuga("profiles", "retire", name)
    code, _, err = sakuga("profiles", "retire", name)
    assert code == 2 and err.startswith("error E_PROFILE: there is no version of")


def test_what_there_is_not(sakuga):
    code, _, err = sakuga("profiles", "show", "none")
    assert code == 2 and err.startswith("error E_NOT_FOUND: there is no profile 'none'")


def test_a_user_cannot_change_profiles(api, tenant, sakuga, name, monkeypatch):
    promoted(api, name)
    monkeypatch.setenv("SAKUGA_API_KEY", api.key(tenant))
    code, _, err = sakuga("profiles", "retire", name)
    assert code == 2 and err.startswith("error E_SCOPE")


def test_submit_with_a_profile_or_a_quality(api, sakuga, name):
    api.stores.profiles.activate(promoted(api, name).id)
    code, out, _ = sakuga("submit", "x", "--profile", name, "--json")
    assert (code, json.loads(out)["profile_version"]) == (0, 1)
    assert RenderRecipe.from_dict(api.claim().recipe).num_inference_steps == 3
    _, out, err = sakuga("submit", "x", "--quality", "standard", "--size", "64x64")
    assert "there is no standard profile for 64x64" in err
    code, _, err = sakuga("submit", "x", "--quality", "good")
    assert code == 2 and "quality is 'good'" in err
