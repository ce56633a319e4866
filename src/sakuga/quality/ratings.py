"""What raters said of pairs of videos: the file of their answers, and what the answers come to.

`ratings.jsonl` has one line for each answer: rater, stem of the two videos, which variant stood on which side, four
scores of 1 to 5 for each, and the time. A line is on the disk before the rater sees the next pair. A last line that a
crash cut off counts for nothing; a damaged line anywhere else is an error, since nobody knows what it said.

Order and sides follow from rater and pair alone, so that a page that is loaded again shows the same.

Run: pytest tests/unit/test_quality_ratings.py
"""

import hashlib
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sakuga.errors import DataError, InputError, VideoError, shown
from sakuga.media.files import output_error
from sakuga.quality.evaluate import videos_in
from sakuga.quality.report import Interval, interval

logger = logging.getLogger(__name__)

QUESTIONS = ("dynamics", "camera", "picture", "target")
LOWEST, HIGHEST = 1, 5
RATINGS_FILE = "ratings.jsonl"
PLAYED_SUFFIXES = frozenset({".mp4", ".webm", ".m4v", ".mov"})
"""What browsers play."""
Scores = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two videos of one stem, by their variants in alphabetical order."""

    stem: str
    variants: tuple[str, str]

    @property
    def id(self) -> str:
        """A name that tells nothing of the variants."""
        return hashlib.sha256(json.dumps([self.stem, *self.variants]).encode()).hexdigest()[:16]

    def sides(self, rater: str) -> tuple[str, str]:
        """The variants on the left and on the right for this rater."""
        first, second = self.variants
        return (first, second) if _draw("side", rater, self.id) % 2 else (second, first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """One rater's answer to one pair."""

    rater: str
    pair: Pair
    left: str
    """The variant that stood on the left."""
    scores: dict[str, Scores]
    """By variant, then by question."""
    time: str
    """ISO 8601, UTC."""

    def line(self) -> str:
        right = next(variant for variant in self.pair.variants if variant != self.left)
        told = {
            "rater": self.rater, "pair": self.pair.id, "stem": self.pair.stem, "left": self.left, "right": right,
            "scores": self.scores, "order_seed": _draw("side", self.rater, self.pair.id), "time": self.time,
        }  # fmt: skip
        return json.dumps(told, ensure_ascii=False) + "\n"

    def total(self, variant: str) -> int:
        return sum(self.scores[variant].values())


def _draw(what: str, rater: str, pair_id: str) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps([what, rater, pair_id]).encode()).digest()[:6], "big")


def in_order(pairs: Iterable[Pair], rater: str) -> list[Pair]:
    """The pairs as this rater sees them one after the other."""
    return sorted(pairs, key=lambda pair: _draw("order", rater, pair.id))


def rater_name(given: str) -> str:
    """The name as it is kept: one rater is one whatever the case and the blanks. Raises InputError."""
    name = " ".join(given.split()).casefold()
    if not name or len(name) > 40 or not name.isprintable():
        raise InputError(f"the rater is {shown(given)}, but a name or initials of 1 to 40 characters are needed")
    return name


def find_variants(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Videos by variant and stem: the variants are the folders' names. Raises InputError or VideoError."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{shown(folder)} does not exist or is no folder: give one with videos")
    found = {folder.resolve().name: videos_in(folder) for folder in folders}
    if len(found) < len(folders):
        raise InputError(f"two folders have the name {shown(folders[0].name)}, which is what variants are told by")
    for videos in found.values():
        for path in videos.values():
            if path.suffix.lower() not in PLAYED_SUFFIXES:
                raise VideoError(f"{shown(path)} is nothing that browsers play; convert it to mp4")
    return found


def folders_in(folder: Path) -> list[Path]:
    """The sub-folders that hold videos. Raises InputError unless there are two."""
    if not folder.is_dir():
        raise InputError(f"{shown(folder)} is no folder: give one with a sub-folder for each variant")
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = [path for path in inside if videos_in(path)]
    if len(found) < 2:
        raise InputError(
            f"{shown(folder)} has {len(found)} sub-folders with videos, and rating compares two or more: "
            "put each variant's videos into a sub-folder of its own, or give --a and --b"
        )
    return found


def pairs_of(variants: Mapping[str, Mapping[str, Path]]) -> list[Pair]:
    """Every two variants of every stem that both have. Raises InputError if there is no such stem."""
    found = [
        Pair(stem=stem, variants=(one, other))
        for one, other in itertools.combinations(sorted(variants), 2)
        for stem in sorted(variants[one].keys() & variants[other].keys())
    ]
    if not found:
        names = ", ".join(shown(name) for name in variants)
        raise InputError(f"no video of one of {names} has the name of one in another: they are matched without suffix")
    return found


def read_ratings(path: Path) -> list[Rating]:
    """All answers; of two to one pair by one rater, as from two tabs, the first. No file is no answers."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}") from error
    found: dict[tuple[str, str], Rating] = {}
    for number, line in enumerate(lines[:-1], start=1):  # behind the last newline is nothing, or what a crash left
        if line.strip():
            rating = _rating(path, number, line)
            found.setdefault((rating.rater, rating.pair.id), rating)
    if lines[-1]:
        logger.warning("%s ends within a line, which a crash cut off: it is left out", path)
    return list(found.values())


def _rating(path: Path, number: int, line: bytes) -> Rating:
    try:
        told = json.loads(line)
        first, second = sorted((told["left"], told["right"]))
        scores = {variant: {q: told["scores"][variant][q] for q in QUESTIONS} for variant in (first, second)}
        values = [value for given in scores.values() for value in given.values()]
        if first == second or not all(type(value) is int and LOWEST <= value <= HIGHEST for value in values):
            raise ValueError("scores are whole numbers from 1 to 5 for two variants")
        pair = Pair(stem=str(told["stem"]), variants=(first, second))
        return Rating(
            rater=str(told["rater"]), pair=pair, left=told["left"], scores=scores, time=str(told["time"])
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{shown(path)}, line {number}, is no rating ({shown(str(error))}): mend or remove it"
        ) from error


def append_rating(path: Path, rating: Rating) -> None:
    """One more line, on the disk when this returns. What a crash left behind the last newline is cut off first.

    Raises DiskFullError or OutputError.
    """
    try:
        with path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(rating.line().encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise output_error(path, error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantSummary:
    """What raters gave to one variant."""

    questions: dict[str, Interval]
    subjective: Interval
    """Sum of the four questions, 4 to 20: what `weighted_total` takes."""
    wins: int
    ties: int
    losses: int

    def as_dict(self) -> dict[str, object]:
        return {
            "questions": {name: value.as_dict() for name, value in self.questions.items()},
            "subjective": self.subjective.as_dict(),
            "wins": self.wins, "ties": self.ties, "losses": self.losses,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingSummary:
    """All answers together."""

    num_ratings: int
    raters: tuple[str, ...]
    variants: dict[str, VariantSummary]
    agreement: dict[str, float | None]
    """Krippendorff's alpha, ordinal, by question and of the `total`: 1 agree, 0 as by chance; None: not defined."""

    def as_dict(self) -> dict[str, object]:
        return {
            "num_ratings": self.num_ratings,
            "raters": list(self.raters),
            "variants": {name: found.as_dict() for name, found in self.variants.items()},
            "agreement": self.agreement,
        }


def summarise(ratings: Sequence[Rating]) -> RatingSummary:
    """Means, wins and agreement. Raises InputError without a single answer.

    Intervals are over the stems, each the mean of its answers: that is what another set of videos would vary by.
    """
    if not ratings:
        raise InputError("there are no ratings yet: run `sakuga rate` without --summary and answer some pairs")
    names = sorted({name for rating in ratings for name in rating.pair.variants})
    return RatingSummary(
        num_ratings=len(ratings),
        raters=tuple(sorted({rating.rater for rating in ratings})),
        variants={name: _of_variant(name, [r for r in ratings if name in r.pair.variants]) for name in names},
        agreement={question: _alpha(ratings, question) for question in (*QUESTIONS, "total")},
    )


def subjective_by_stem(ratings: Sequence[Rating], variant: str) -> dict[str, float]:
    """Mean sum of the four questions of each video of a variant. Raises InputError if nobody rated it."""
    known = {name for rating in ratings for name in rating.pair.variants}
    if variant not in known:
        raise InputError(
            f"nobody rated {shown(variant)}, which is the folder's name: rated are "
            f"{', '.join(shown(name) for name in sorted(known)) or 'none'}"
        )
    return _by_stem([r for r in ratings if variant in r.pair.variants], lambda rating: rating.total(variant))


def _of_variant(name: str, ratings: Sequence[Rating]) -> VariantSummary:
    ahead = [2 * rating.total(name) - sum(map(rating.total, rating.pair.variants)) for rating in ratings]
    questions = {}
    for question in QUESTIONS:
        means = _by_stem(ratings, lambda rating, question=question: rating.scores[name][question])
        questions[question] = interval(list(means.values()))
    return VariantSummary(
        questions=questions,
        subjective=interval(list(subjective_by_stem(ratings, name).values())),
        wins=sum(by > 0 for by in ahead), ties=ahead.count(0), losses=sum(by < 0 for by in ahead),
    )  # fmt: skip


def _by_stem(ratings: Sequence[Rating], figure: Callable[[Rating], int]) -> dict[str, float]:
    values: dict[str, list[int]] = {}
    for rating in ratings:
        values.setdefault(rating.pair.stem, []).append(figure(rating))
    return {stem: sum(given) / len(given) for stem, given in values.items()}


def _alpha(ratings: Sequence[Rating], question: str) -> float | None:
    """None where it is not defined: nothing that two raters rated, or one and the same score for everything."""
    import krippendorff

    raters = sorted({rating.rater for rating in ratings})
    units = sorted({(rating.pair.id, variant) for rating in ratings for variant in rating.pair.variants})
    table = np.full((len(raters), len(units)), np.nan)
    for rating in ratings:
        for variant, scores in rating.scores.items():
            value = rating.total(variant) if question == "total" else scores[question]
            table[raters.index(rating.rater), units.index((rating.pair.id, variant))] = value
    shared = table[:, (~np.isnan(table)).sum(0) > 1]
    if shared.size == 0 or len(np.unique(shared[~np.isnan(shared)])) < 2:
        return None
    alpha = float(krippendorff.alpha(reliability_data=shared, level_of_measurement="ordinal"))
    return alpha if math.isfinite(alpha) else None
