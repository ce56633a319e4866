"""The tables of docs/faults.md: every row is there, has a test that exists or says why it has none."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
MATRIX, BAD_INPUT = (
    [line.strip("| ").split(" | ") for line in part.splitlines() if re.match(r"\| \d", line)]
    for part in TEXT.partition("## Fault matrix")[2].split("## Bad input")
)
NAMED = re.findall(r"`((?:unit|ray|dist)/test_\w+\.py)::(test_\w+)`", TEXT)


def numbers(words: str) -> list[int]:
    """
    >>> numbers("1-3, 7")
    [1, 2, 3, 7]
    """
    found: list[int] = []
    for part in words.split(", "):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def test_every_row_is_there_once():
    assert [int(row[0]) for row in MATRIX] == list(range(1, 43))
    assert sorted(number for row in BAD_INPUT for number in numbers(row[0])) == list(range(1, 76))


@pytest.mark.parametrize("row", [*MATRIX, *BAD_INPUT], ids=lambda row: row[0])
def test_a_row_has_a_test_or_says_why_not(row):
    assert "::test_" in " ".join(row) or "not covered: " in " ".join(row)


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_what_is_named_exists(file, name):
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_nothing_is_named_in_another_form():
    assert len(NAMED) == TEXT.count("::test_") > 100
