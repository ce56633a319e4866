"""`sakuga submit`, `jobs`, `cancel` and `download` on a running farm: what reaches it, what is printed, how it ends."""

import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from api_farm import LocalServer, png
from farm_front import Front
from sakuga.cli import client, jobs, output, serve
from sakuga.jobstore import Lane
from sakuga.recipe import RenderRecipe

SMALL = ("--size", "32x32", "--set", "num_frames=5", "--set", "num_inference_steps=2")


def submitted(sakuga, *args: str) -> str:
    code, out, _ = sakuga("submit", *args, *SMALL)
    assert code == 0
    return out.strip()


def test_what_is_asked_for_reaches_the_farm(api, tenant, sakuga, tmp_path):
    (tmp_path / "me.png").write_bytes(png())
    code, out, err = sakuga(
        "submit", "A fairy dances.", "--image", "me.png", "--model", "wan-mini", "--size", "48x32", "--seconds", "1",
        "--lora", "fairy:0.8", "--priority", "batch", "--deadline-s", "600", "--webhook-url", "https://example.org/x",
        "--set", "num_inference_steps=3", "--set", "seed=7", "--set", "guidance_scale=2.5",
        "--set", "negative_prompt=a=b, c",
    )  # fmt: skip
    assert code == 0, err
    job, claim = api.stores.jobs.get(tenant, out.strip()), api.claim()
    recipe = RenderRecipe.from_dict(claim.recipe)
    assert (recipe.prompt, recipe.width, recipe.height, recipe.num_frames) == ("A fairy dances.", 48, 32, 17)
    assert (recipe.num_inference_steps, recipe.seed, recipe.guidance_scale) == (3, 7, 2.5)
    assert recipe.negative_prompt == "a=b, c"
    assert [lora.weight for lora in recipe.loras] == [0.8]
    assert set(claim.inputs) == {"input_image"}
    assert (job.priority, job.webhook_url) == ("batch", "https://example.org/x")
    assert err.startswith(f"{job.id} queued, ") and " left\n" in err


def test_the_place_in_the_queue_is_told(sakuga):
    submitted(sakuga, "the first")
    _, out, err = sakuga("submit", "the second", *SMALL)
    assert err.startswith(f"{out.strip()} queued, 1 before it, ")


def test_json_is_the_farms_own_answer_and_nothing_else(sakuga):
    code, out, err = sakuga("submit", "x", *SMALL, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    told = json.loads(out)
    assert (told["status"], told["size"], told["queue_position"], told["steps"]) == ("queued", "32x32", 0, 2)


def test_a_lost_answer_makes_no_second_job(api, tenant, sakuga, monkeypatch):
    """The official client asks again by itself, three times in all."""
    front = Front(api.app, lost_answers=1)
    with front.serving() as url:
        code, out, _ = sakuga("submit", "x", *SMALL, "--url", url)
    assert code == 0
    assert [path for path, _ in front.requests] == 2 * ["/v1/videos"]
    assert [job.id for job in api.stores.jobs.page(tenant)[0]] == [out.strip()]
    submitted(sakuga, "x")
    assert len(api.stores.jobs.page(tenant)[0]) == 2, "the same once more is another job"


def test_a_key_of_ones_own_gives_the_same_job(sakuga):
    assert submitted(sakuga, "x", "--idempotency-key", "a") == submitted(sakuga, "x", "--idempotency-key", "a")


@pytest.mark.parametrize(
    ("args", "code", "exit_code", "words"),
    [
        (("--size", "33x33"), "E_GEOMETRY", 2, "nearest: 32x32"),
        (("--lora", "nope:1"), "E_RECIPE", 2, "wan-mini has fairy"),
        (("--model", "wan-max"), "E_MODEL", 2, "wan-mini"),
        (("--set", "steps=3"), "E_RECIPE", 2, "no such field: 'steps'"),
        (("--set", "seed=many"), "E_RECIPE", 2, "seed is 'many'"),
        (("--set", "seed"), "E_RECIPE", 2, "write NAME=VALUE"),
        (("--set", "=3"), "E_RECIPE", 2, "write NAME=VALUE"),
        (("--set", "seed=1", "--set", "seed=2"), "E_RECIPE", 2, "'seed' is given twice"),
        (("--set", "prompt=y"), "E_RECIPE", 2, "'prompt' is given twice"),
        (("--priority", "batch", "--set", "priority=normal"), "E_RECIPE", 2, "'priority' is given twice"),
        (("--image", "none.png"), "E_IMAGE", 2, "No such file"),
        (("--image", "."), "E_IMAGE", 2, "Is a directory"),
        (("--image", "text.png"), "E_IMAGE", 2, ""),
        (("--out", "a.mp4"), "E_USAGE", 2, "--out needs --watch"),
        (("--watch", "--out", "none/a.mp4"), "E_OUTPUT", 3, "a folder that is there"),
        (("--api-key", "sk-sakuga-other"), "E_AUTH", 2, ""),
        (("--api-key", "schlüssel"), "E_SETTINGS", 2, "characters that no key has"),
    ],
)
def test_what_is_refused_makes_no_job(api, tenant, sakuga, tmp_path, args, code, exit_code, words):
    (tmp_path / "text.png").write_text("no picture")
    ended, out, err = sakuga("submit", "x", *args, "--json")
    assert (ended, err.count("\n")) == (exit_code, 1)
    assert err.startswith(f"error {code}: ") and words in err
    assert json.loads(out)["error"]["code"] == code
    assert api.stores.jobs.page(tenant)[0] == []


def test_a_used_up_quota_is_no_fault_of_the_input(api, tenant, sakuga):
    code, _, err = sakuga("submit", "x", *SMALL, "--api-key", api.key(tenant, quota_gpu_s=1e-9))
    assert code == 4
    assert err.startswith("error E_QUOTA: ")


def test_without_a_key(sakuga, tmp_path, monkeypatch):
    monkeypatch.delenv("SAKUGA_API_KEY")
    code, _, err = sakuga("jobs")
    assert (code, err.split(":")[0]) == (2, "error E_SETTINGS")
    assert "--api-key" in err and "SAKUGA_API_KEY" in err
    (tmp_path / "sakuga-farm").mkdir()
    (tmp_path / "sakuga-farm" / "api-key").write_text("\n")
    assert sakuga("jobs")[0] == 2


def test_the_key_of_the_farm_in_this_folder(api, tenant, sakuga, tmp_path, monkeypatch):
    monkeypatch.delenv("SAKUGA_API_KEY")
    (tmp_path / "sakuga-farm").mkdir()
    (tmp_path / "sakuga-farm" / "api-key").write_text(api.key(tenant) + "\n")
    assert sakuga("jobs")[:2] == (0, "no jobs yet\n")


def test_nobody_answers(sakuga, monkeypatch):
    monkeypatch.setattr(client, "RETRIES", 0)
    for args in (("jobs",), ("watch", "video_1"), ("submit", "x")):
        code, _, err = sakuga(*args, "--url", "http://127.0.0.1:9")
        assert code == 3
        assert err.startswith("error E_FARM: http://127.0.0.1:9 does not answer (")
        assert err.count("\n") == 1


@pytest.mark.parametrize("url", ["farm", "ftp://x", "http://", "http://[x", "http://x:y", "http://a\x1b[31m"])
def test_an_address_of_no_farm(sakuga, url):
    code, _, err = sakuga("jobs", "--url", url)
    assert (code, err.split(":")[0]) == (2, "error E_SETTINGS")
    assert "\x1b" not in err


def test_the_address_that_openais_client_takes(api, sakuga):
    assert sakuga("jobs", "--url", f"{api.url}/v1/")[0] == 0


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("args", [("jobs",), ("submit", "x"), ("cancel", "a"), ("logs", "a"), ("watch", "a")])
def test_another_server_at_that_address(sakuga, status, args):
    async def page(scope, receive, send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": b"<html>Dashboard</html>"})

    server = LocalServer(page)
    try:
        code, _, err = sakuga(*args, "--url", server.start())
    finally:
        server.stop()
    assert (code, err.split(":")[0]) == (3 if status == 200 else 2, "error E_FARM")
    assert "is it the address of" in err


def table(sakuga, monkeypatch, width: int, **console: object) -> list[str]:
    """What `sakuga jobs` draws on a terminal."""
    monkeypatch.setattr(output, "stdout_console", Console(force_terminal=True, width=width, soft_wrap=True, **console))
    code, out, _ = sakuga("jobs")
    assert code == 0
    return out.splitlines()


def test_jobs_fit_into_80_columns(api, sakuga, monkeypatch):
    ids = [submitted(sakuga, "A fairy dances over the meadow in the morning sun.", "--set", "seed=1")]
    api.render()
    ids.append(submitted(sakuga, "作画の妖精が踊る、雨の中で、何度も何度も", "--set", "seed=2"))
    api.stores.renders.heartbeat(api.claim(), 1)
    ids.append(submitted(sakuga, "[bold]\nred\u202e", "--set", "seed=3"))
    ids.append(submitted(sakuga, "x"))
    sakuga("cancel", ids[-1])
    lines = table(sakuga, monkeypatch, 80, no_color=True, color_system=None)
    assert max(map(cell_len, lines)) <= 80
    assert lines[0].split() == ["id", "status", "age", "prompt"]
    assert [line.split()[:2] for line in lines[1:]] == [
        [ids[3], "cancelled"], [ids[2], "queued"], [ids[1], "50"], [ids[0], "completed"],
    ]  # fmt: skip
    assert "…" in lines[4] and "…" in lines[3]
    assert "[bold]\\nred\\u202e" in lines[2]
    colours = table(sakuga, monkeypatch, 80, color_system="standard")
    assert "\x1b[32mcompleted" in colours[4]
    narrow = table(sakuga, monkeypatch, 45, no_color=True, color_system=None)
    assert [line[:36] for line in narrow[1:]] == ids[::-1]
    _, out, _ = sakuga("jobs", "--limit", "2", "--json")
    assert [video["id"] for video in json.loads(out)["data"]] == ids[:1:-1]


def test_jobs_in_a_pipe_keep_their_prompts(sakuga):
    video = submitted(sakuga, "A fairy dances over the meadow in the morning sun.")
    _, out, _ = sakuga("jobs")
    assert f"{video}  queued" in out and "in the morning sun." in out


def test_cancel(api, sakuga):
    waiting = submitted(sakuga, "x")
    assert sakuga("cancel", waiting)[:2] == (0, f"{waiting} is cancelled\n")
    assert api.stores.renders.claim(Lane(name="lane-1", models=("wan-mini",))) is None
    done = submitted(sakuga, "y")
    api.render()
    assert sakuga("cancel", done)[:2] == (0, f"{done} was completed before; nothing to cancel\n")
    code, _, err = sakuga("cancel", "video_none")
    assert (code, err.split(":")[0]) == (2, "error E_NOT_FOUND")


@pytest.mark.parametrize("command", ["watch", "cancel", "download", "logs"])
@pytest.mark.parametrize("job_id", ["", "../loras", "a b", "a?b", "a" * 65, "\x1b[31m"])
def test_what_is_no_id(sakuga, command, job_id):
    code, _, err = sakuga(command, job_id)
    assert (code, err.count("\n"), err.split(":")[0]) == (2, 1, "error E_USAGE")
    assert "\x1b" not in err


def test_download(api, sakuga, tmp_path):
    video = submitted(sakuga, "x")
    code, _, err = sakuga("download", video)
    assert (code, err.split(":")[0]) == (2, "error E_NOT_FOUND")
    assert "queued" in err
    api.render()
    assert sakuga("download", video)[1] == f"{video}.mp4\n"
    assert (tmp_path / f"{video}.mp4").read_bytes()[4:8] == b"ftyp"
    for variant in ("thumbnail", "spritesheet"):
        path = sakuga("download", video, "--variant", variant)[1].strip()
        assert (tmp_path / path).read_bytes()[:4] == b"RIFF", path
    assert "seconds" in json.loads(
        (tmp_path / sakuga("download", video, "--variant", "receipt")[1].strip()).read_text()
    )
    _, out, _ = sakuga("download", video, "--out", "a [red].mp4", "--json")
    assert json.loads(out) == {"path": "a [red].mp4"}
    assert sakuga("download", video, "--out", "a [red].mp4")[1] == "a [red].mp4\n"
    assert sakuga("download", video, "--out", "none/a.mp4")[0] == 3
    assert sakuga("download", video, "--variant", "film")[0] == 2
    assert sorted(jobs.SUFFIX) == ["preview", "receipt", "spritesheet", "thumbnail", "video"]


@pytest.mark.parametrize(
    ("url", "words"), [(serve.DEFAULT_URL, "submit --watch"), ("http://a:1", "submit --url http://a:1 --watch")]
)
def test_the_line_that_serve_prints_finds_the_farm(capsys, url, words):
    serve._greet(url, "sk-sakuga-x", None)
    assert words in capsys.readouterr().out
