"""`sakuga rate` and `sakuga evaluate --ratings`: what a user types, and the sentences for what cannot be rated.

The server itself: tests/unit/test_api_rating.py.
"""

import json
import shutil
import socket

import numpy as np
import pytest

from sakuga.api import rating as served
from sakuga.cli import main as cli
from sakuga.media import write_mp4
from sakuga.quality.ratings import QUESTIONS, Pair, Rating, append_rating


def last_json(text: str) -> dict:
    return json.loads(text.rstrip("\n").rsplit("\n", 1)[-1])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two variants of two videos; one that is no video; ratings of others, and damaged ones."""
    folder, draw = tmp_path_factory.mktemp("drawn"), np.random.default_rng(7)
    for variant in ("base", "lora"):
        (folder / variant).mkdir()
        for stem in ("jump", "kick"):
            write_mp4(folder / variant / f"{stem}.mp4", draw.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), 15)
    (folder / "bad" / "other").mkdir(parents=True)
    shutil.copy(folder / "base" / "jump.mp4", folder / "bad" / "other" / "else.mp4")
    for name in ("broken", "damaged"):
        for variant in ("x", "y"):
            (folder / "bad" / name / variant).mkdir(parents=True)
            shutil.copy(folder / "base" / "jump.mp4", folder / "bad" / name / variant / "a.mp4")
    (folder / "bad" / "broken" / "x" / "a.mp4").write_text("no video")
    (folder / "bad" / "damaged" / "ratings.jsonl").write_text("hello\n")
    scores = {"p": dict.fromkeys(QUESTIONS, 1), "q": dict.fromkeys(QUESTIONS, 1)}
    other = Rating(rater="a", pair=Pair(stem="s", variants=("p", "q")), left="p", scores=scores, time="t")
    (folder / "bad" / "r.jsonl").write_text(other.line())
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "drawn")


@pytest.fixture
def started(monkeypatch):
    """What would be served, and where."""
    found = []
    monkeypatch.setattr(served, "serve_rating", lambda task, at: (found.append((task, at.getsockname())), at.close()))
    return found


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return str(found.getsockname()[1])


def rate_all(folder, *raters: str) -> None:
    for n, rater in enumerate(raters):
        for stem, low in (("jump", 1), ("kick", 2)):
            scores = {"base": dict.fromkeys(QUESTIONS, low), "lora": dict.fromkeys(QUESTIONS, 4 + n)}
            pair = Pair(stem=stem, variants=("base", "lora"))
            rating = Rating(rater=rater, pair=pair, left=pair.sides(rater)[0], scores=scores, time="t")
            append_rating(folder / "ratings.jsonl", rating)


def test_rate_serves_the_pairs_here_alone(folder, started, capsys):
    assert cli.run(["rate", str(folder), "--port", (port := free_port()), "--json"]) == 0
    ((task, at),) = started
    assert (at, len(task.pairs), task.file) == (("127.0.0.1", int(port)), 2, folder / "ratings.jsonl")
    assert last_json(capsys.readouterr().out) == {
        "url": f"http://127.0.0.1:{port}/", "num_pairs": 2, "ratings": str(folder / "ratings.jsonl"),
    }  # fmt: skip


def test_a_port_that_is_taken_is_named_before_an_address_is_printed(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.run(["rate", str(folder), "--port", port]) == 2
    told = capsys.readouterr()
    assert told.out == "" and f":{port} cannot be listened on" in told.err and "another --port" in told.err


def test_rate_takes_two_folders_from_anywhere(folder, started, tmp_path_factory, capsys):
    home = tmp_path_factory.mktemp("home")
    words = ["--a", str(folder / "base"), "--b", str(folder / "lora")]
    for where in ([], [str(home)]):
        assert cli.run(["rate", *where, *words, "--port", (port := free_port())]) == 0
        assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out
    assert [task.folder for task, _ in started] == [folder, home]


def test_the_summary_says_means_wins_and_agreement(folder, capsys):
    rate_all(folder, "anna", "ben")
    assert cli.run(["rate", str(folder), "--summary"]) == 0
    out = capsys.readouterr().out
    assert "4 answers of 2 raters" in out and "Krippendorff" in out
    assert cli.run(["rate", str(folder), "--summary", "--json"]) == 0
    told = last_json(capsys.readouterr().out)
    assert told["variants"]["lora"]["wins"] == told["variants"]["base"]["losses"] == 4
    assert told["variants"]["lora"]["subjective"]["mean"] == 18.0
    assert 0 < told["agreement"]["dynamics"] < 1


def test_one_rater_agrees_with_nobody(folder, capsys):
    rate_all(folder, "anna")
    assert cli.run(["rate", str(folder), "--summary"]) == 0
    assert "dynamics not defined" in capsys.readouterr().out


def test_ratings_bring_the_weighted_total_to_evaluate(folder, capsys):
    rate_all(folder, "anna", "ben")
    words = [str(folder / "base"), str(folder / "lora"), "--ratings", str(folder / "ratings.jsonl")]
    assert cli.run(["evaluate", *words, "--json"]) == 0
    told = last_json(capsys.readouterr().out)
    mean = told["set"]["mean"]
    assert mean["subjective"]["mean"] == 18.0
    expected = [18 / 20 * 0.5 + row["psnr_db"] / 50 * 0.25 + row["ssim"] * 0.25 for row in told["rows"]]
    assert mean["weighted_total"]["mean"] == told["weighted_total"] == pytest.approx(np.mean(expected))
    files = [str(folder / "base" / "jump.mp4"), str(folder / "lora" / "jump.mp4")]
    assert cli.run(["evaluate", *files, *words[2:]]) == 0
    assert "weighted total" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rate"], "nothing to rate"),
        (["rate", "{}/missing"], "is no folder"),
        (["rate", "{}/base"], "has 0 sub-folders with videos"),
        (["rate", "--a", "{}/base"], "--a and --b go together"),
        (["rate", "--a", "{}/base", "--b", "{}/base"], "two folders have the name"),
        (["rate", "--a", "{}/base", "--b", "{}/bad/other"], "no video of one of 'base', 'other'"),
        (["rate", "--a", "{}/base", "--b", "{}/nowhere"], "nowhere' does not exist"),
        (["rate", "{}", "--summary"], "no ratings yet"),
        (["rate", "{}/bad/broken"], "not a video that ffmpeg can read"),
        (["rate", "{}/bad/damaged"], "line 1, is no rating"),
        (["evaluate", "{}/base", "{}/lora", "--ratings", "{}/missing.jsonl"], "missing.jsonl' does not exist"),
        (["evaluate", "{}/base", "{}/lora", "--ratings", "{}/bad/r.jsonl"], "nobody rated 'lora'"),
        (["evaluate", "{}/base", "{}/lora", "--ratings", "{}/bad/r.jsonl", "--subjective", "3"], "not both"),
        (["evaluate", "{}/base", "{}/lora", "--metric", "lpip=x"], "did you mean 'lpips'"),
        (["evaluate", "{}/base", "{}/lora", "--metric", "lpips=x"], "'x' does not exist"),
        (["evaluate", "{}/base", "{}/lora", "--prompts", "{}/none.csv"], "none.csv' cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(drawn, started, words, said, capsys):
    assert cli.run([word.replace("{}", str(drawn)) for word in words]) in (2, 3)
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
    assert not started
