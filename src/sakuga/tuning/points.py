"""What a point of a sweep's space means: fields of a request, or settings of a training run.

A name with a dot goes inside: `loras.fairy` is the weight of that LoRA, `step_cache.threshold_rel_l1` the threshold of
the base's step cache. `num_frames` of a training sweep chooses how long the clips are that it learns from.

Run: pytest tests/unit/test_tuning_points.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from sakuga.errors import InputError, SweepError, did_you_mean, shown
from sakuga.recipe.request import REQUEST_FIELDS, RecipeRequest, parse_request
from sakuga.training.config import TrainConfig
from sakuga.tuning.space import Point
from sakuga.tuning.sweepfile import Sweep
from sakuga.wan.catalogue import card

NOT_SWEPT = frozenset({"id", "model", "prompt", "seed", "weights_sha256", "input_image", "end_image", "reference_image",
                       "input_video", "control_video", "vace_video", "vace_mask"})  # fmt: skip
"""Of a request: the cases decide these."""
OF_THE_CASES = ("width", "height", "fps")
"""Of a request: the sweep's targets are made at one size and speed."""
NOT_TRAINED_WITH = frozenset({"model", "mode", "num_steps", "seed", "start_lora_sha256", "style_lora_sha256"})
"""Settings of a run that the sweep decides itself."""
PROMPT = "a dancer"


def render_fields(base: Mapping[str, object], point: Point) -> dict[str, object]:
    """The base's fields with the point's in their places. Raises SweepError for a name that fits nowhere."""
    fields = dict(base)
    for name, value in point.items():
        outer, _, inner = name.partition(".")
        if not inner:
            fields[name] = value
        elif outer == "loras":
            fields["loras"] = _with_weight(fields.get("loras"), inner, value)
        elif outer == "step_cache":
            fields["step_cache"] = _with_cache(fields.get("step_cache"), inner, value)
        else:
            raise SweepError(f"the space has {shown(name)}; only loras.NAME and step_cache.FIELD have a dot")
    return {name: value for name, value in fields.items() if value is not None}


def request_of(sweep: Sweep, fields: Mapping[str, object], case: Mapping[str, object]) -> RecipeRequest:
    """The request of a case: its prompt, pictures and seed with these fields."""
    return parse_request({"model": sweep.model, **case, **fields})


def train_config(sweep: Sweep, point: Point, *, num_steps: int, seed: int) -> TrainConfig:
    """The settings of a training trial. Raises TrainError."""
    fields = {**sweep.base, **{name: value for name, value in point.items() if name != "num_frames"}}
    return TrainConfig.from_dict(
        {"model": sweep.model, "mode": "lora", **_tuples(fields), "num_steps": num_steps, "seed": seed}
    )


def check_points(sweep: Sweep) -> None:
    """The base, and every value of the space, one at a time beside the first of the others. Raises SweepError."""
    _check_names(sweep)
    parameters = sweep.parameters
    try:  # alone: the first value of the space has nothing to do with its faults
        _check_base(sweep)
    except InputError as error:
        raise error if isinstance(error, SweepError) else SweepError(f"the base: {error.message}") from error
    first = {name: parameter.ends()[0] for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for value in parameter.ends():
            try:
                _check(sweep, {**first, name: value})
            except InputError as error:
                if isinstance(error, SweepError):
                    raise
                raise SweepError(f"{name} {shown(value)} of the space: {error.message}") from error


def _check_base(sweep: Sweep) -> None:
    if sweep.kind == "inference":
        _check_request(sweep, sweep.base)
        _check_others(sweep, "reference", {**sweep.base, **sweep.reference})
    else:
        train_config(sweep, {}, num_steps=1, seed=0).check_card(card(sweep.model))
        _check_others(sweep, "render", sweep.render)


def _check_others(sweep: Sweep, name: str, fields: Mapping[str, object]) -> None:
    try:
        _check_request(sweep, fields)
    except InputError as error:
        raise SweepError(f"{name}: {error.message}") from error


def _check(sweep: Sweep, point: Point) -> None:
    if sweep.kind == "inference":
        _check_request(sweep, render_fields(sweep.base, point))
        return
    train_config(sweep, point, num_steps=1, seed=0).check_card(card(sweep.model))
    if "num_frames" in point:
        _check_geometry(sweep, None, None, point["num_frames"])


def _check_request(sweep: Sweep, fields: Mapping[str, object]) -> None:
    request = request_of(sweep, fields, {"prompt": PROMPT})
    _check_geometry(sweep, request.width, request.height, request.num_frames)


def _check_geometry(sweep: Sweep, width: object, height: object, num_frames: object) -> None:
    found = card(sweep.model)
    sides = [
        default if value is None else value
        for value, default in ((width, found.width), (height, found.height), (num_frames, found.num_frames))
    ]
    if not all(isinstance(side, int) for side in sides):
        raise SweepError(f"num_frames of the space is {shown(num_frames)}; it must be a whole number")
    found.check_geometry(*sides)  # ty: ignore[invalid-argument-type]  # whole numbers, as was just seen


def _check_names(sweep: Sweep) -> None:
    if sweep.kind == "inference":
        known: set[str] = set(REQUEST_FIELDS) - NOT_SWEPT
        written = {*sweep.base, *sweep.reference, *(name.partition(".")[0] for name in sweep.parameters)}
    else:
        known = {field.name for field in dataclasses.fields(TrainConfig)} - NOT_TRAINED_WITH
        written = {*sweep.base, *(name for name in sweep.parameters if name != "num_frames")}
        for name in sweep.render:
            if name not in REQUEST_FIELDS or name in NOT_SWEPT:
                raise SweepError(f"render has {shown(name)}{did_you_mean(name, set(REQUEST_FIELDS) - NOT_SWEPT)}")
    for name in sorted(written):
        if name not in known:
            raise SweepError(f"{sweep.kind} trials have no field {shown(name)}{did_you_mean(name, known)}")
    for name in OF_THE_CASES if sweep.kind == "inference" else ():
        if name in sweep.parameters:
            raise SweepError(f"{name} is in the space, and the cases have one size and speed; put it into the base")
    twice = sorted(set(sweep.base) & set(sweep.parameters))
    if twice:
        raise SweepError(f"{twice[0]} is in the base and in the space; keep one of them")


def _with_weight(loras: object, name: str, weight: object) -> list[dict[str, object]]:
    entries = [dict(entry) for entry in _lora_entries(loras)]
    for entry in entries:
        if name in (entry.get("name"), Path(str(entry.get("path", ""))).stem):
            entry["weight"] = weight
            return entries
    raise SweepError(f"the space has loras.{name}, and the base names no such LoRA; add it to base.loras")


def _lora_entries(loras: object) -> list[dict[str, object]]:
    request = parse_request({"prompt": PROMPT, "loras": [] if loras is None else loras})
    return [lora.model_dump(exclude_none=True) for lora in request.loras]


def _with_cache(cache: object, field: str, value: object) -> dict[str, object]:
    request = parse_request({"prompt": PROMPT, "step_cache": cache})
    if request.step_cache is None:
        raise SweepError(
            f"the space has step_cache.{field}, and the base no step_cache; write base.step_cache: KIND:0.1"
        )
    return {**dataclasses.asdict(request.step_cache), field: value}


def _tuples(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
