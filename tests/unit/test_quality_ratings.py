"""Answers of raters: pairs and their order, the file after a crash, means, wins and agreement."""

import errno
import itertools
import json
import math
import os

import krippendorff
import numpy as np
import pytest
import scipy.stats

from sakuga.errors import DataError, DiskFullError, InputError, VideoError
from sakuga.quality.ratings import (
    QUESTIONS,
    Pair,
    Rating,
    append_rating,
    find_variants,
    folders_in,
    in_order,
    pairs_of,
    rater_name,
    read_ratings,
    subjective_by_stem,
    summarise,
)


def rated(rater: str, stem: str, base: tuple[int, ...], lora: tuple[int, ...]) -> Rating:
    pair = Pair(stem=stem, variants=("base", "lora"))
    scores = {"base": dict(zip(QUESTIONS, base, strict=True)), "lora": dict(zip(QUESTIONS, lora, strict=True))}
    return Rating(rater=rater, pair=pair, left=pair.sides(rater)[0], scores=scores, time="2030-01-01T00:00:00+00:00")


def put(folder, *names: str):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"a video")
    return folder


def test_every_two_variants_of_a_stem_are_a_pair(tmp_path):
    put(tmp_path / "a", "one.mp4", "two.mp4", "notes.txt")
    put(tmp_path / "b", "one.webm", "three.mp4")
    put(tmp_path / "c", "one.mp4", "two.mp4")
    put(tmp_path / ".hidden", "one.mp4")
    (tmp_path / "empty").mkdir()
    variants = find_variants(folders_in(tmp_path))
    found = [(pair.stem, *pair.variants) for pair in pairs_of(variants)]
    assert found == [("one", "a", "b"), ("one", "a", "c"), ("two", "a", "c"), ("one", "b", "c")]
    assert len({pair.id for pair in pairs_of(variants)}) == 4


def test_what_cannot_be_rated_says_why(tmp_path):
    one, other = put(tmp_path / "x" / "a", "one.mp4"), put(tmp_path / "x" / "b", "two.mp4")
    with pytest.raises(InputError, match="no video of one of 'a', 'b'"):
        pairs_of(find_variants([one, other]))
    put(tmp_path / "y" / "a", "one.mp4")
    with pytest.raises(InputError, match="has 1 sub-folders with videos"):
        folders_in(tmp_path / "y")
    with pytest.raises(InputError, match="is no folder"):
        folders_in(one / "one.mp4")
    with pytest.raises(InputError, match="two folders have the name 'a'"):
        find_variants([one, tmp_path / "y" / "a"])
    with pytest.raises(VideoError, match="nothing that browsers play"):
        find_variants([one, put(tmp_path / "z", "one.avi")])


def test_sides_and_order_are_the_raters_own_and_stay():
    pairs = [Pair(stem=str(n), variants=("base", "lora")) for n in range(200)]
    for rater in ("anna", "ben"):
        left = sum(pair.sides(rater)[0] == "base" for pair in pairs)
        assert 70 <= left <= 130, "each side about half the time"
        assert [pair.sides(rater) for pair in pairs] == [pair.sides(rater) for pair in pairs]
        assert in_order(pairs, rater) == in_order(reversed(pairs), rater) != pairs
    assert in_order(pairs, "anna") != in_order(pairs, "ben")
    assert [pair.sides("anna") for pair in pairs] != [pair.sides("ben") for pair in pairs]
    assert {frozenset(pair.sides("anna")) for pair in pairs} == {frozenset(("base", "lora"))}


def test_an_id_tells_nothing_of_the_variants():
    pair = Pair(stem="jump", variants=("base", "lora"))
    assert len(pair.id) == 16 and int(pair.id, 16) >= 0
    assert pair.id != Pair(stem="jump", variants=("base", "lorb")).id


@pytest.mark.parametrize("given", ["", "  ", "x" * 41, "a\x1b[31m", "a\u202eb"])
def test_names_that_are_none(given):
    with pytest.raises(InputError, match="name or initials"):
        rater_name(given)


def test_a_rater_is_one_whatever_the_keyboard_does():
    assert rater_name("  Anna  B ") == rater_name("anna b") == "anna b"


def test_answers_are_kept_and_the_first_of_two_counts(tmp_path):
    path = tmp_path / "ratings.jsonl"
    assert read_ratings(path) == []
    first = rated("anna", "jump", (1, 2, 3, 4), (5, 5, 5, 5))
    for rating in (first, rated("ben", "jump", (2, 2, 2, 2), (3, 3, 3, 3)), rated("anna", "jump", (5,) * 4, (1,) * 4)):
        append_rating(path, rating)
    assert read_ratings(path) == [first, rated("ben", "jump", (2, 2, 2, 2), (3, 3, 3, 3))]
    told = json.loads(path.read_text().splitlines()[0])
    assert {"rater", "pair", "stem", "left", "right", "scores", "order_seed", "time"} == set(told)
    assert {told["left"], told["right"]} == {"base", "lora"}


@pytest.mark.parametrize("tail", ['{"rater": "anna", "pa', "\x00\x00", '{"rater": "x"}'])
def test_a_line_that_a_crash_cut_off_counts_for_nothing_and_is_written_over(tail, tmp_path):
    path = tmp_path / "ratings.jsonl"
    one, two = rated("anna", "jump", (1,) * 4, (2,) * 4), rated("anna", "kick", (3,) * 4, (4,) * 4)
    append_rating(path, one)
    with path.open("a") as file:
        file.write(tail)
    assert read_ratings(path) == [one]
    append_rating(path, two)
    assert read_ratings(path) == [one, two]
    assert path.read_text() == one.line() + two.line()


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["scores"]["base"].update(camera=6),
        lambda told: told["scores"]["base"].update(camera=0),
        lambda told: told["scores"]["base"].update(camera=2.5),
        lambda told: told["scores"]["base"].update(camera=True),
        lambda told: told["scores"]["base"].pop("camera"),
        lambda told: told["scores"].pop("base"),
        lambda told: told.update(left=told["right"]),
        lambda told: told.pop("rater"),
    ],
)
def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(change, tmp_path):
    path = tmp_path / "ratings.jsonl"
    good = rated("anna", "jump", (1,) * 4, (2,) * 4)
    told = json.loads(good.line())
    change(told)
    path.write_text(good.line() + json.dumps(told) + "\n" + good.line())
    with pytest.raises(DataError, match=r"ratings.jsonl', line 2, is no rating"):
        read_ratings(path)


def test_a_disk_that_takes_no_more_is_an_error_with_a_code(tmp_path, monkeypatch):
    def full(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        append_rating(tmp_path / "ratings.jsonl", rated("anna", "jump", (1,) * 4, (2,) * 4))


def test_the_summary_of_known_answers():
    ratings = [
        rated("anna", "jump", (1, 2, 3, 4), (5, 4, 3, 4)),
        rated("ben", "jump", (3, 2, 3, 4), (3, 3, 3, 3)),
        rated("anna", "kick", (2, 2, 2, 2), (1, 1, 1, 1)),
    ]
    found = summarise(ratings)
    base, lora = found.variants["base"], found.variants["lora"]
    assert (base.wins, base.ties, base.losses) == (1, 1, 1)
    assert (lora.wins, lora.ties, lora.losses) == (1, 1, 1)
    assert base.questions["dynamics"].mean == pytest.approx(((1 + 3) / 2 + 2) / 2)
    totals = [(10 + 12) / 2, 8.0]
    assert base.subjective.mean == pytest.approx(np.mean(totals))
    wanted = scipy.stats.t.interval(0.95, 1, loc=np.mean(totals), scale=scipy.stats.sem(totals))
    assert (base.subjective.low, base.subjective.high) == pytest.approx(wanted)
    assert subjective_by_stem(ratings, "lora") == {"jump": 14.0, "kick": 4.0}
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (told["num_ratings"], told["raters"]) == (3, ["anna", "ben"])


def test_agreement_is_krippendorffs():
    """Table of the raters against units; ordinal, and what only one rater saw does not count."""
    draw = np.random.default_rng(5)
    table = draw.integers(1, 6, (2, 12))
    noisy = np.clip(table[0] + draw.integers(-1, 2, 12), 1, 5)
    ratings = []
    for rater, row in (("anna", table[0]), ("ben", noisy)):
        for n in range(6):
            ratings.append(rated(rater, str(n), (int(row[2 * n]),) * 4, (int(row[2 * n + 1]),) * 4))
    ratings.append(rated("anna", "alone", (1,) * 4, (5,) * 4))
    wanted = krippendorff.alpha(np.stack([table[0], noisy]).astype(float), level_of_measurement="ordinal")
    found = summarise(ratings).agreement
    assert set(found) == {*QUESTIONS, "total"}
    assert all(alpha == pytest.approx(wanted) for alpha in found.values())


def test_agreement_that_is_not_defined():
    one = [rated("anna", "jump", (1, 2, 3, 4), (5, 4, 3, 4))]
    apart = [*one, rated("ben", "kick", (1, 2, 3, 4), (5, 4, 3, 4))]
    flat = [rated(rater, "jump", (3,) * 4, (3,) * 4) for rater in ("anna", "ben")]
    for ratings in (one, apart, flat):
        assert set(summarise(ratings).agreement.values()) == {None}
    same = [rated(rater, "jump", (1, 2, 3, 4), (5, 4, 3, 4)) for rater in ("anna", "ben")]
    agreement = summarise(same).agreement
    assert agreement["dynamics"] == 1.0
    assert agreement["picture"] is None


def test_more_agreement_is_a_higher_alpha():
    def alpha(*rows: tuple[int, ...]) -> float:
        ratings = [
            rated(f"r{n}", str(stem), (row[stem],) * 4, (6 - row[stem],) * 4)
            for n, row in enumerate(rows)
            for stem in range(len(row))
        ]
        found = summarise(ratings).agreement["total"]
        assert found is not None
        return found

    same, near, opposite = alpha((1, 2, 5), (1, 2, 5)), alpha((1, 2, 5), (2, 2, 4)), alpha((1, 2, 5), (5, 4, 1))
    assert math.isclose(same, 1.0) and same > near > 0 > opposite


def test_nobody_rated():
    with pytest.raises(InputError, match="no ratings yet"):
        summarise([])
    with pytest.raises(InputError, match=r"nobody rated 'new'.*'base', 'lora'"):
        subjective_by_stem([rated("anna", "jump", (1,) * 4, (2,) * 4)], "new")


def test_three_variants_are_summed_over_all_their_pairs():
    ratings = []
    for one, other in itertools.combinations(("a", "b", "c"), 2):
        pair = Pair(stem="jump", variants=(one, other))
        scores = {one: dict.fromkeys(QUESTIONS, 4), other: dict.fromkeys(QUESTIONS, 2)}
        ratings.append(Rating(rater="anna", pair=pair, left=one, scores=scores, time="t"))
    found = summarise(ratings).variants
    assert [(v.wins, v.losses, v.subjective.mean) for v in found.values()] == [(2, 0, 16.0), (1, 1, 12.0), (0, 2, 8.0)]
