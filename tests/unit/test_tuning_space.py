"""Search spaces: what they hold, what a point is called, what is refused."""

import dataclasses
import re

import pytest

from sakuga.errors import SweepError
from sakuga.training.config import TrainConfig
from sakuga.tuning.search import random_points
from sakuga.tuning.space import WHOLE_FIELDS, Choice, Range, grid, parse_space, trial_id, words


def test_a_grid_has_every_combination_once():
    space = parse_space({"rank": [4, 8], "lr": [1e-3, 1e-2, 3e-2]})
    points = list(grid(space))
    assert len(points) == 6 and len({trial_id(point) for point in points}) == 6
    assert points[0] == {"rank": 4, "lr": 1e-3} and points[1] == {"rank": 4, "lr": 1e-2}


def test_ranges_are_whole_where_the_field_is_however_the_ends_are_written():
    space = parse_space({"rank": {"low": 4.0, "high": 20}, "guidance_scale": {"low": 1, "high": 5, "log": True}})
    assert space == {
        "rank": Range(low=4, high=20, is_whole=True), "guidance_scale": Range(low=1.0, high=5.0, log=True)
    }  # fmt: skip
    assert [type(end) for each in space.values() for end in each.ends()] == [int, int, float, float]
    drawn = random_points(space, 20, seed=0)
    assert all(isinstance(point["rank"], int) for point in drawn)
    assert len({point["guidance_scale"] for point in drawn} - {1, 2, 3, 4, 5}) == 20


def test_fields_of_runs_that_are_whole_are_known():
    whole = {field.name for field in dataclasses.fields(TrainConfig) if field.type == "int"} - {"seed"}
    assert whole <= WHOLE_FIELDS and not WHOLE_FIELDS & {"lr", "alpha", "weight", "flow_shift", "text_dropout"}


def test_a_trial_id_is_of_the_content_not_of_the_spelling():
    assert trial_id({"a": 1, "b": None}) == trial_id({"b": None, "a": 1.0})
    assert trial_id({"a": ["q", "k"]}) == trial_id({"a": ("q", "k")}) != trial_id({"a": ["k", "q"]})


def test_words_are_short():
    assert words({"targets": ("q", "k"), "cache": None, "lr": 0.0012345}) == "targets q k, cache none, lr 0.00123"


def test_null_is_a_value():
    assert parse_space({"step_cache": [None, "teacache:0.1"]})["step_cache"] == Choice(values=(None, "teacache:0.1"))


@pytest.mark.parametrize(
    "written, message",
    [
        ({}, "the space is empty"),
        (None, "the space is empty"),
        ({"rank": []}, "rank of the space has no values"),
        ({"rank": 8}, "rank of the space is 8; give a list of values"),
        ({"rank": [8, 8.0]}, "rank of the space has 8 twice"),
        ({"lr": {"low": 1, "high": 0}}, "lr goes from 1 to 0; low must be below high"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "low must be above 0"),
        ({"lr": {"low": "1e-4", "high": 1}}, "YAML reads 1e-4 as text, write 1.0e-4"),
        ({"lr": {"low": 0, "high": float("inf")}}, "high of lr is inf"),
        ({"lr": {"low": 0, "hgih": 1}}, "give low, high and log"),
        ({"lr": {"low": 0, "high": 1, "log": "yes"}}, "log of lr is 'yes'"),
        ({"rank": {"low": 4, "high": 8.5}}, "rank goes from 4 to 8.5; both must be whole numbers"),
        ({"num_frames": {"low": 5, "high": 17}}, "list its values"),
        ({"lr": [float("nan")]}, "values must be finite"),
    ],
)
def test_what_is_no_space_is_refused(written, message):
    with pytest.raises(SweepError, match=re.escape(message)):
        parse_space(written)


def test_a_grid_of_ranges_or_of_too_many_points_is_refused():
    with pytest.raises(SweepError, match="a grid has no ranges, and lr is one"):
        next(grid(parse_space({"lr": {"low": 0, "high": 1}})))
    with pytest.raises(SweepError, match="1,000,000 points"):
        next(grid(parse_space({name: list(range(100)) for name in "abc"})))
