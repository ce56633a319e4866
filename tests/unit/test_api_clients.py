"""OpenAI's client against a running farm: the newest that is installed here, and the oldest that is promised to work.

The older one is installed at the first run, into a folder of pytest's cache, and is run in a process of its own.
Without a package index its test is skipped; where the environment variable CI is set it fails instead.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from api_farm import LIMIT_S, ApiFarm, png

OLDEST_CLIENT = "2.30.0"
"""The lower end of pyproject.toml's range, to which a test of the house holds it."""
INSTALL_S = 300.0
WALK = Path(__file__).parents[1] / "openai_walk.py"
BREAKS = "A render that breaks."


@pytest.fixture(scope="session")
def oldest_client(request) -> Path:
    """A folder with the old client and what it needs; installed once."""
    cache = request.config.cache.mkdir(f"openai-{OLDEST_CLIENT}-py{sys.version_info[0]}{sys.version_info[1]}")
    folder, fresh = cache / "site", cache / f"new-{os.getpid()}"
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        command = [*pip, "--retries", "1", "--target", str(fresh), f"openai=={OLDEST_CLIENT}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        if done.returncode:
            why = f"openai {OLDEST_CLIENT} cannot be installed here: {done.stderr.strip().splitlines()[-1]}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
        fresh.rename(folder)
    return folder


def walk(api: ApiFarm, tenant: str, scratch: Path, folder: Path | None = None) -> dict:
    """All calls, by the client in `folder` or by the one that is installed."""
    picture = scratch / "photo.png"
    picture.write_bytes(png())
    given = {"OPENAI_BASE_URL": f"{api.url}/v1", "OPENAI_API_KEY": api.key(tenant)}
    path = {"PYTHONPATH": str(folder)} if folder else {}
    with api.lane(fails=BREAKS):
        done = subprocess.run(
            [sys.executable, str(WALK), BREAKS, str(picture), str(scratch)],
            env={**os.environ, **given, **path}, capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def newest(_api, tmp_path_factory) -> dict:
    told = walk(_api, "newest-client", tmp_path_factory.mktemp("newest"))
    _api.clear()
    return told


def test_the_installed_client_gets_what_it_asks_for(newest):
    assert newest["version"] == openai.__version__
    facts = newest["facts"]
    assert {facts[name]["status"] for name in ("poll", "retrieve", "create_and_poll", "async")} == {"completed"}
    assert facts["raw"][:2] == [200, "req_"]
    assert (facts["poll"]["seconds"], facts["poll"]["size"], facts["poll"]["progress"]) == ("4", "48x32", 100)
    assert facts["by address"] == "completed"
    assert (facts["remix"][0]["prompt"], facts["remix"][1]) == ("A fairy sings.", True)
    assert (facts["failed"][0]["status"], *facts["failed"][1:]) == ("failed", "E_NAN", "the render has NaN")
    assert facts["first page"][1] is True
    assert facts["oldest first"] == facts["all pages"][::-1] == list(range(7))
    assert [facts["content"][name][0] for name in ("video", "thumbnail", "spritesheet")] == [
        "video/mp4", "image/webp", "image/webp",
    ]  # fmt: skip
    assert facts["to a file"] == [facts["content"]["video"][1], "ftyp"]
    assert facts["delete"] == 2 * [{"object": "video.deleted", "deleted": True}]
    refusals = ("deleted", "bad size", "no such field", "not yet", "bad remix", "stranger")
    assert {name: facts[name][0:3] for name in refusals} == {
        "deleted": ["NotFoundError", 404, "E_NOT_FOUND"],
        "bad size": ["BadRequestError", 400, "E_GEOMETRY"],
        "no such field": ["BadRequestError", 400, "E_RECIPE"],
        "not yet": ["NotFoundError", 404, "E_NOT_FOUND"],
        "bad remix": ["BadRequestError", 400, "E_PROMPT"],
        "stranger": ["AuthenticationError", 401, "E_AUTH"],
    }
    assert all(facts[name][5:] == [True, True] for name in refusals), "an id of the request and a sentence"


def test_the_oldest_client_gets_the_same(newest, oldest_client, api, tmp_path):
    oldest = walk(api, "oldest-client", tmp_path, oldest_client)
    assert (oldest["version"], oldest["from"]) == (OLDEST_CLIENT, str(oldest_client))
    assert oldest["facts"] == newest["facts"]
