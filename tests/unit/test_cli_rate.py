"""`sakuga rate` and `sakuga evaluate --ratings`: what a user types, and the sentences for what cannot be rated.

The server itself: tests/unit/test_api_rating.py.
"""

import json

import numpy as np
import pytest

from sakuga.api import rating as served
from sakuga.cli import main as cli
from sakuga.media import write_mp4
from sakuga.quality.ratings import QUESTIONS, Pair, Rating, append_rating


def last_json(text: str) -> dict:
    return json.loads(text.rstrip("\n").rsplit("\n", 1)[-1])


@pytest.fixture
def folder(tmp_path, seed):
    draw = np.random.default_rng(seed)
    for variant in ("base", "lora"):
        (tmp_path / variant).mkdir()
        for stem in ("jump", "kick"):
            write_mp4(tmp_path / variant / f"{stem}.mp4", draw.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), 15)
    return tmp_path


@pytest.fixture
def started(monkeypatch):
    """What would be served."""
    found = []
    monkeypatch.setattr(served, "serve_rating", lambda task, host, port: found.append((task, host, port)))
    return found


def rate_all(folder, *raters: str) -> None:
    for n, rater in enumerate(raters):
        for stem, low in (("jump", 1), ("kick", 2)):
            scores = {"base": dict.fromkeys(QUESTIONS, low), "lora": dict.fromkeys(QUESTIONS, 4 + n)}
            pair = Pair(stem=stem, variants=("base", "lora"))
            rating = Rating(rater=rater, pair=pair, left=pair.sides(rater)[0], scores=scores, time="t")
            append_rating(folder / "ratings.jsonl", rating)


def test_rate_serves_the_pairs_here_alone(folder, started, capsys):
    assert cli.run(["rate", str(folder), "--json"]) == 0
    ((task, host, port),) = started
    assert (host, port, len(task.pairs), task.file) == ("127.0.0.1", 8020, 2, folder / "ratings.jsonl")
    assert last_json(capsys.readouterr().out) == {
        "url": "http://127.0.0.1:8020/", "num_pairs": 2, "ratings": str(folder / "ratings.jsonl"),
    }  # fmt: skip


def test_rate_takes_two_folders_from_anywhere(folder, started, tmp_path_factory, capsys):
    home = tmp_path_factory.mktemp("home")
    words = ["--a", str(folder / "base"), "--b", str(folder / "lora")]
    assert cli.run(["rate", *words, "--port", "9"]) == 0
    assert cli.run(["rate", str(home), *words]) == 0
    assert [task.folder for task, _, _ in started] == [folder, home]
    assert "http://127.0.0.1:9/" in capsys.readouterr().out


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
    assert cli.run(["evaluate", *words]) == 0
    assert "weighted total" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rate"], "nothing to rate"),
        (["rate", "{}/missing"], "is no folder"),
        (["rate", "{}/base"], "has 0 sub-folders with videos"),
        (["rate", "--a", "{}/base"], "--a and --b go together"),
        (["rate", "--a", "{}/base", "--b", "{}/base"], "two folders have the name"),
        (["rate", "--a", "{}/base", "--b", "{}/other"], "no video of one of 'base', 'other'"),
        (["rate", "--a", "{}/base", "--b", "{}/nowhere"], "nowhere' does not exist"),
        (["rate", "{}", "--summary"], "no ratings yet"),
        (["rate", "{}/broken"], "not a video that ffmpeg can read"),
        (["rate", "{}/damaged"], "line 1, is no rating"),
        (["evaluate", "{}/base", "{}/lora", "--ratings", "{}/missing.jsonl"], "missing.jsonl' does not exist"),
        (["evaluate", "{}/base", "{}/lora", "--ratings", "{}/r.jsonl"], "nobody rated 'lora'"),
        (["evaluate", "{}/base", "{}/lora", "--ratings", "{}/r.jsonl", "--subjective", "3"], "not both"),
        (["evaluate", "{}/base", "{}/lora", "--metric", "lpip=x"], "did you mean 'lpips'"),
        (["evaluate", "{}/base", "{}/lora", "--metric", "lpips=x"], "'x' does not exist"),
        (["evaluate", "{}/base", "{}/lora", "--prompts", "{}/none.csv"], "none.csv' cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(folder, started, words, said, capsys):
    (folder / "other").mkdir()
    write_mp4(folder / "other" / "else.mp4", np.zeros((2, 16, 16, 3), np.uint8), 15)
    for name in ("broken", "damaged"):
        for variant in ("x", "y"):
            (folder / name / variant).mkdir(parents=True)
            write_mp4(folder / name / variant / "a.mp4", np.zeros((2, 16, 16, 3), np.uint8), 15)
    (folder / "broken" / "x" / "a.mp4").write_text("no video")
    (folder / "damaged" / "ratings.jsonl").write_text("hello\n")
    (folder / "r.jsonl").write_text(
        Rating(
            rater="a", pair=Pair(stem="s", variants=("p", "q")), left="p", time="t",
            scores={"p": dict.fromkeys(QUESTIONS, 1), "q": dict.fromkeys(QUESTIONS, 1)},
        ).line()
    )  # fmt: skip
    assert cli.run([word.replace("{}", str(folder)) for word in words]) in (2, 3)
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
    assert not started
