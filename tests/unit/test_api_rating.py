"""The rating application: nothing tells variants apart, nothing else is served, nothing is lost or counted twice."""

import json
import os
import re
import signal
import threading

import httpx
import pytest
from starlette.testclient import TestClient

from sakuga.api.rating import RatingTask, create_rating_app, open_port, serve_rating
from sakuga.quality.ratings import QUESTIONS, find_variants, pairs_of, read_ratings

GOOD = dict.fromkeys(QUESTIONS, 5)
BAD = dict.fromkeys(QUESTIONS, 1)


@pytest.fixture
def task(tmp_path):
    for variant in ("base", "lora"):
        (tmp_path / variant).mkdir()
        for stem in ("jump", "kick", "twirl"):
            (tmp_path / variant / f"{stem}.mp4").write_bytes(f"the bytes of one video: {variant} {stem}".encode())
    (tmp_path / "base" / "secret.mp4").write_bytes(b"not of any pair")
    videos = find_variants([tmp_path / "base", tmp_path / "lora"])
    return RatingTask(folder=tmp_path, pairs=pairs_of(videos), videos=videos)


@pytest.fixture
def client(task):
    return TestClient(create_rating_app(task))


def answer(client, rater, pair, left=GOOD, right=BAD):
    return client.post("/answers", json={"rater": rater, "pair": pair, "left": left, "right": right})


def state(client, rater):
    return client.get("/state", params={"rater": rater}).json()


def test_a_rater_goes_through_all_pairs_and_then_learns_which_was_which(client, task):
    told, seen = state(client, "Anna"), []
    assert (told["rater"], told["done"], told["total"]) == ("anna", 0, 3)
    while told["pair"] is not None:
        assert "preferred" not in told
        seen.append(told["pair"])
        told = answer(client, "Anna", told["pair"]).json()
    assert sorted(seen) == sorted(pair.id for pair in task.pairs)
    left = [next(p for p in task.pairs if p.id == pair).sides("anna")[0] for pair in seen]
    assert told == {
        "rater": "anna", "done": 3, "total": 3, "pair": None,
        "preferred": {name: left.count(name) for name in ("base", "lora")},
    }  # fmt: skip
    ratings = read_ratings(task.file)
    assert [rating.pair.id for rating in ratings] == seen
    assert [rating.left for rating in ratings] == left
    assert all(rating.total(rating.left) == 20 for rating in ratings)


def test_a_reload_goes_on_where_it_stopped_with_the_same_sides(client, task):
    first = state(client, "anna")["pair"]
    assert state(client, "anna")["pair"] == first
    before = client.get("/video", params={"rater": "anna", "pair": first, "side": "left"}).content
    answer(client, "anna", first)
    again = TestClient(create_rating_app(task))
    assert state(again, "ANNA ")["done"] == 1 and state(again, "anna")["pair"] != first
    assert again.get("/video", params={"rater": "anna", "pair": first, "side": "left"}).content == before
    assert state(again, "ben")["done"] == 0


def test_sides_show_the_videos_that_are_recorded(client, task):
    for rater in ("anna", "ben", "c", "d"):
        for pair in task.pairs:
            for n, side in enumerate(("left", "right")):
                shown = client.get("/video", params={"rater": rater, "pair": pair.id, "side": side})
                assert shown.content == task.videos[pair.sides(rater)[n]][pair.stem].read_bytes()


def test_nothing_tells_the_variants_apart_before_the_end(client):
    told = client.get("/state", params={"rater": "anna"})
    params = {"rater": "anna", "pair": told.json()["pair"], "side": "left"}
    video = client.get("/video", params=params)
    said = told.text + json.dumps(dict(told.headers)) + json.dumps(dict(video.headers)) + client.get("/").text
    for name in ("base", "lora"):
        assert not re.search(rf"\b{name}\b(?!-uri)", said), name
    part = client.get("/video", params=params, headers={"range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)


@pytest.mark.parametrize(
    "change",
    [
        {"pair": "../../base/secret"},
        {"pair": "secret"},
        {"pair": ""},
        {"pair": "/etc/passwd"},
        {"side": "../base"},
        {"rater": ""},
    ],
)
def test_only_listed_videos_are_served(client, change):
    pair = state(client, "anna")["pair"]
    got = client.get("/video", params={"rater": "anna", "pair": pair, "side": "left"} | change)
    assert got.status_code in (400, 404)
    assert got.json()["code"] in ("E_NOT_FOUND", "E_INPUT")


@pytest.mark.parametrize(
    "path", ["/base/jump.mp4", "/ratings.jsonl", "/video/../ratings.jsonl", "/%2e%2e/etc/passwd", "/docs"]
)
def test_there_are_no_files_below_any_path(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("score", [0, 6, -1, 2.5, "3", True, None, [3]])
def test_scores_outside_1_to_5_are_refused(client, task, score):
    got = answer(client, "anna", state(client, "anna")["pair"], left=GOOD | {"camera": score})
    assert (got.status_code, got.json()["code"]) == (400, "E_INPUT")
    assert "camera" in got.json()["detail"]
    assert not task.file.exists()


@pytest.mark.parametrize(
    "body",
    [
        {"left": {}},
        {"left": GOOD | {"extra": 1}},
        {"rater": "x" * 99},
        {"more": 1},
        {"pair": "0123456789abcdef"},
        {"pair": None},
    ],
)
def test_other_bad_answers_are_refused(client, task, body):
    good = {"rater": "anna", "pair": state(client, "anna")["pair"], "left": GOOD, "right": BAD}
    got = client.post("/answers", json=good | body)
    assert got.status_code in (400, 404) and got.json()["detail"]
    assert client.post("/answers", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert not task.file.exists()


def test_two_tabs_at_once_count_once(client, task):
    pair = state(client, "anna")["pair"]
    codes, barrier = [], threading.Barrier(4)

    def tab():
        barrier.wait()
        codes.append(answer(client, "anna", pair).status_code)

    threads = [threading.Thread(target=tab) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(codes) == [200, 409, 409, 409]
    assert len(task.file.read_text().splitlines()) == 1
    assert answer(client, "anna", pair).json()["code"] == "E_CONFLICT"
    assert answer(client, "ben", pair).status_code == 200


def test_a_crash_in_the_middle_of_a_line_loses_that_line_only(client, task):
    first = state(client, "anna")["pair"]
    second = answer(client, "anna", first).json()["pair"]
    whole = task.file.read_bytes()
    answer(client, "anna", second)
    task.file.write_bytes(task.file.read_bytes()[: len(whole) + 40])
    again = TestClient(create_rating_app(task))
    assert (state(again, "anna")["done"], state(again, "anna")["pair"]) == (1, second)
    assert answer(again, "anna", second).json()["done"] == 2
    assert len(read_ratings(task.file)) == 2


def test_what_cannot_be_written_is_told_and_can_be_sent_again(client, task):
    pair = state(client, "anna")["pair"]
    task.file.mkdir()  # no file can be written there
    got = answer(client, "anna", pair)
    assert got.status_code >= 400 and got.json()["code"] in ("E_DATA", "E_OUTPUT")
    task.file.rmdir()
    assert answer(client, "anna", pair).json()["done"] == 1


def test_a_damaged_file_is_told_and_not_written_to(client, task):
    task.file.write_text("hello\n")
    assert client.get("/state", params={"rater": "anna"}).json()["code"] == "E_DATA"
    assert answer(client, "anna", task.pairs[0].id).json()["code"] == "E_DATA"
    assert task.file.read_text() == "hello\n"


def test_it_serves_until_ctrl_c_which_ends_it_well(task, monkeypatch):
    # A Ctrl-C of one server ends the event streams of all that this process will ever have.
    monkeypatch.setattr("sse_starlette.sse.AppStatus.should_exit", False)
    listening, answers = open_port("127.0.0.1", 0), []

    def rater():
        try:
            answers.append(httpx.get(f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout=30).status_code)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=rater)
    thread.start()
    serve_rating(task, listening)
    thread.join(timeout=30)
    assert answers == [200]


def test_the_page_may_load_nothing_from_elsewhere(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy
    assert not re.search(r"""<[^>]*(?:src|href)\s*=\s*["'](?!data:)|https?://|@import|url\(""", page.text)
