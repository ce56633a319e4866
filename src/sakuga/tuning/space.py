"""A search space: what a sweep varies, one parameter a name, and the points in it.

    rank: [4, 8, 16]                                 a choice
    lr: {low: 1.0e-4, high: 1.0e-2, log: true}       a range, of whole numbers where the field takes no others
    loras.fairy: {low: 0.4, high: 1.2}               a weight of a LoRA that the base names

A point is a value for each parameter. Its id is a hash of it, so that a trial has one name in every run of the sweep.

Run: pytest tests/unit/test_tuning_space.py
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sakuga.errors import SweepError, shown
from sakuga.recipe import LIMITS

Point = Mapping[str, object]
MAX_GRID = 10_000
SHORT = {"num_inference_steps": "steps", "guidance_scale": "guidance", "num_frames": "frames"}
"""As on the command line."""
ID_CHARS = 8
WHOLE_FIELDS = frozenset({
    *(name for name, limit in LIMITS.items() if limit.whole), "step_cache.refresh_every", "rank", "num_steps",
    "global_batch_size", "warmup_steps", "distill_steps", "distill_intervals", "teacher_steps",
})  # fmt: skip
"""Of requests and of training runs; a range over them draws whole numbers, any other one fractions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of some values: numbers, texts, null, lists."""

    values: tuple[object, ...]

    def ends(self) -> tuple[object, ...]:
        """The values to try out when the space is checked."""
        return self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False
    """Drawn evenly in the logarithm."""
    is_whole: bool = False

    def ends(self) -> tuple[object, ...]:
        return self.low, self.high


Parameter = Choice | Range
Space = Mapping[str, Parameter]


def parse_space(written: object) -> dict[str, Parameter]:
    """The parameters of a sweep file. Raises SweepError."""
    if not isinstance(written, Mapping) or not written:
        raise SweepError("the space is empty; name a parameter with its values, such as num_inference_steps: [8, 12]")
    return {str(name): _parameter(str(name), value) for name, value in written.items()}


def grid(space: Space) -> Iterator[dict[str, object]]:
    """Every combination, the last parameter first to change. Raises SweepError for a range or too many points."""
    for name, parameter in space.items():
        if isinstance(parameter, Range):
            raise SweepError(f"a grid has no ranges, and {name} is one; list its values, or take search: random")
    choices = [parameter.values for parameter in space.values() if isinstance(parameter, Choice)]
    if math.prod(map(len, choices)) > MAX_GRID:
        raise SweepError(f"the grid has {math.prod(map(len, choices)):,} points; at most {MAX_GRID:,} are taken")
    for values in itertools.product(*choices):
        yield dict(zip(space, values, strict=True))


def trial_id(point: Point) -> str:
    """Eight hexadecimal digits of the point's content; 8 and 8.0 are one value.

    >>> trial_id({"rank": 8}) == trial_id({"rank": 8.0})
    True
    """
    plain = json.dumps({name: _plain(value) for name, value in point.items()}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(plain.encode()).hexdigest()[:ID_CHARS]


def words(point: Point) -> str:
    """A point as a person reads it.

    >>> words({"num_inference_steps": 8, "step_cache": None, "lr": 0.00123456})
    'steps 8, step_cache none, lr 0.00123'
    """
    return ", ".join(f"{SHORT.get(name, name)} {word(value)}" for name, value in point.items())


def _parameter(name: str, value: object) -> Parameter:
    if isinstance(value, (list, tuple)):
        return Choice(values=_distinct(name, value))
    if isinstance(value, Mapping):
        return _range(name, value)
    raise SweepError(f"{name} of the space is {shown(value)}; give a list of values or {{low: A, high: B}}")


def _distinct(name: str, values: Sequence[object]) -> tuple[object, ...]:
    if not values:
        raise SweepError(f"{name} of the space has no values; list some, or leave it out")
    keys = [json.dumps(_plain(value), sort_keys=True, default=str) for value in values]
    twice = next((value for value, key in zip(values, keys, strict=True) if keys.count(key) > 1), None)
    if len(set(keys)) < len(keys):
        raise SweepError(f"{name} of the space has {shown(twice)} twice; keep one of them")
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise SweepError(f"{name} of the space has {value}; values must be finite")
    return tuple(values)


def _range(name: str, value: Mapping[object, object]) -> Range:
    if not {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        raise SweepError(f"{name} of the space has the fields {shown(sorted(map(str, value)))}; give low, high and log")
    low, high, log = value["low"], value["high"], value.get("log", False)
    for side, number in (("low", low), ("high", high)):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            hint = "; YAML reads 1e-4 as text, write 1.0e-4" if isinstance(number, str) else ""
            raise SweepError(f"{side} of {name} is {shown(number)}; it must be a finite number{hint}")
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))
    if not isinstance(log, bool):
        raise SweepError(f"log of {name} is {shown(log)}; it must be true or false")
    if low >= high:
        raise SweepError(f"{name} goes from {low:g} to {high:g}; low must be below high")
    if log and low <= 0:
        raise SweepError(f"{name} is logarithmic from {low:g}; low must be above 0")
    if name == "num_frames":
        raise SweepError("num_frames of the space is a range, and models take some lengths only; list its values")
    if name not in WHOLE_FIELDS:
        return Range(low=float(low), high=float(high), log=log)
    if low != int(low) or high != int(high):
        raise SweepError(f"{name} goes from {low:g} to {high:g}; both must be whole numbers, as {name} is")
    return Range(low=int(low), high=int(high), log=log, is_whole=True)


def _plain(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def word(value: object) -> str:
    """A value of a parameter, short."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.3g}"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
