"""A sweep file: what to vary, on what, how far, and what counts. YAML, checked before anything is started.

Two kinds. An *inference* sweep renders the evaluation cases with each point's fields and trains nothing. A *training*
sweep trains a LoRA at each point on the same number of tokens, and renders the cases with those that got through.

Run: pytest tests/unit/test_tuning_sweepfile.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from sakuga.errors import SakugaError, SweepError, did_you_mean, shown
from sakuga.recipe.limits import MAX_SEED, check_slug
from sakuga.synth import HELD_OUT_SEED
from sakuga.tuning.figures import DIRECTIONS
from sakuga.tuning.space import Parameter, grid, parse_space
from sakuga.tuning.yamlfile import read_yaml

FREE_EXECUTOR_FIELDS = {"count", "cpus", "threads"}
"""They may change when a sweep goes on; device and memory decide its seconds, its bytes and what is admitted."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
RENDERED = frozenset({"flicker", "motion", "warp_error", "drift", "identity", "adherence", "seconds", "denoise_s",
                      "peak_bytes"})  # fmt: skip
AGAINST_TARGET = frozenset({"psnr_db", "ssim"})
AGAINST_REFERENCE = frozenset({"ref_psnr_db", "ref_ssim", "flicker_ratio", "motion_ratio"})
MOVING = frozenset({"flicker", "motion", "flicker_ratio", "motion_ratio", "warp_error"})
"""Of more than one frame."""
TRAINED = frozenset({"heldout_loss", "train_s", "lora_bytes"})


class Strict(BaseModel):
    """A misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Evaluation(Strict):
    """What every trial renders: the same prompts, first frames and seeds. One of synth, data and manifest."""

    synth: Literal["live", "fairy"] | None = None
    """Drawn dancers of that world, with their lossless targets."""
    first_seed: Annotated[int, Field(ge=0)] = HELD_OUT_SEED
    """Of them; from `HELD_OUT_SEED` on no model was trained on them."""
    data: str | None = None
    """A training data set; its test samples, with their targets."""
    where: dict[str, str] = {}
    manifest: str | None = None
    """Rows as `sakuga bulk` takes them; without targets."""
    count: Annotated[int, Field(ge=1, le=1000)] = 6
    """At most so many cases."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    """Of the noise; each case is rendered with each. None: one seed, the case's own."""

    @model_validator(mode="after")
    def _one_source(self) -> Evaluation:
        given = [name for name in ("synth", "data", "manifest") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SweepError(
                f"the evaluation names {', '.join(given) or 'no cases'}; give one of synth, data, manifest"
            )
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise SweepError("the evaluation has a seed twice; keep one of them")
        return self

    @property
    def has_targets(self) -> bool:
        return self.manifest is None


class Search(Strict):
    """How points are chosen: all of them, by chance, or by Optuna from what earlier trials gave."""

    algorithm: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    seed: Annotated[int, Field(ge=0)] = 0


class Scheduler(Strict):
    """Which training trials go on."""

    name: Literal["none", "asha", "pbt"] = "none"
    grace: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """ASHA: the share of its tokens that every trial gets."""
    reduction_factor: Annotated[int, Field(ge=2, le=10)] = 2
    """ASHA: one of so many goes on at each rung."""
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """PBT: after this share of its tokens a poor trial takes over a good one's weights and a changed rate."""


class Budget(Strict):
    """Where a sweep ends."""

    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """None: all points of a grid."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Of the whole sweep; what is under way then ends."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """That each training trial sees, whatever its number of frames."""


class Executors(Strict):
    """What renders and trains."""

    count: Annotated[int, Field(ge=1, le=1000)] = 1
    """Trials side by side, each with the base model loaded once."""
    device: Literal["cpu", "cuda"] = "cpu"
    cpus: Annotated[float, Field(gt=0)] = 1.0
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Of one training trial. Above 1 each trial is a Ray Train run of its own."""
    threads: Annotated[int, Field(ge=1)] | None = None
    memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Of one device, for admission; None: what the device has."""
    oversize: Literal["refuse", "resize"] = "refuse"
    """A training trial that is predicted not to fit: refused, or tried with smaller micro-batches and recomputation."""


class Sweep(Strict):
    """One sweep file. Make it with `read_sweep` or `parse_sweep`, which turn pydantic's errors into ours."""

    name: str
    kind: Literal["inference", "training"]
    model: str = "wan-mini"
    weights: str | None = None
    base: dict[str, object] = {}
    """Fields of every trial: of a request for inference, of a training run for training."""
    reference: dict[str, object] = {}
    """Inference: fields of the render that trials are held to, beside the base's."""
    render: dict[str, object] = {}
    """Training: fields of the renders of what was trained."""
    data: str | None = None
    """Training: a data set, or a folder that `sakuga prepare` wrote."""
    where: dict[str, str] = {}
    space: dict[str, object]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Training: each point is trained with each, which gives the effects their intervals."""
    evaluation: Evaluation | None = None
    objectives: Annotated[tuple[str, ...], Field(min_length=1)]
    """The first decides where one must: ASHA's survivors aside, it ranks."""
    search: Search = Search()
    scheduler: Scheduler = Scheduler()
    budget: Budget = Budget()
    executors: Executors = Executors()

    @field_validator("name", "model", mode="before")
    @classmethod
    def _slug(cls, value: object, info: ValidationInfo) -> str:
        return check_slug(str(info.field_name), value)

    @property
    def parameters(self) -> dict[str, Parameter]:
        return parse_space(self.space)

    @property
    def directions(self) -> dict[str, str]:
        """Of the objectives: max or min."""
        return {name: DIRECTIONS[name] for name in self.objectives}

    @property
    def content_sha256(self) -> str:
        """Of everything but how many executors there are, which decides how fast a sweep is and not what it finds."""
        fields = self.model_dump(mode="json", exclude={"executors": FREE_EXECUTOR_FIELDS})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def reportable(self) -> frozenset[str]:
        """The figures that its trials can report."""
        figures = TRAINED if self.kind == "training" else frozenset()
        if self.evaluation is not None:
            figures |= RENDERED
            figures |= AGAINST_TARGET if self.evaluation.has_targets else frozenset()
            figures |= AGAINST_REFERENCE if self.kind == "inference" else frozenset()
        return figures

    @model_validator(mode="after")
    def _together(self) -> Sweep:
        parameters = self.parameters
        self._check_training() if self.kind == "training" else self._check_inference()
        for name in self.objectives:
            if name not in DIRECTIONS:
                hint = did_you_mean(name, DIRECTIONS) or f"; it can report {', '.join(sorted(self.reportable))}"
                raise SweepError(f"there is no figure {shown(name)}{hint}")
            if name not in self.reportable:
                raise SweepError(
                    f"no trial of this sweep reports {name}; it can report {', '.join(sorted(self.reportable))}"
                )
        still = MOVING & set(self.objectives)
        if still and 1 in self._lengths_rendered():
            raise SweepError(f"a render of one frame has no {min(still)}; take 5 or more, or other objectives")
        if len(set(self.objectives)) < len(self.objectives):
            raise SweepError("an objective is named twice; keep one of them")
        if len(set(self.seeds)) < len(self.seeds):
            raise SweepError("seeds has one twice; keep one of them")
        if self.search.algorithm == "grid":
            next(grid(parameters))
        elif self.budget.trials is None:
            raise SweepError(f"search {self.search.algorithm} goes on for ever; give budget.trials")
        if self.search.algorithm == "nsga2" and len(self.objectives) == 1:
            raise SweepError("nsga2 is for several objectives; name another, or take search: tpe")
        return self

    def _lengths_rendered(self) -> tuple[object, ...]:
        """As far as the file says."""
        parameter = self.parameters.get("num_frames")
        if self.kind == "inference" and parameter is not None:
            return parameter.ends()
        return ((self.base if self.kind == "inference" else self.render).get("num_frames"),)

    def _check_training(self) -> None:
        if self.data is None:
            raise SweepError("a training sweep needs data: a folder of clips, or one that `sakuga prepare` wrote")
        if self.budget.tokens is None:
            raise SweepError("a training sweep needs budget.tokens: what each trial sees, such as 2000000")
        if self.reference:
            raise SweepError("a training sweep has no reference render; leave reference out")
        if self.scheduler.name == "pbt" and set(self.parameters) - {"lr"}:
            raise SweepError("pbt changes the learning rate while trials run; the space has lr alone")
        if self.scheduler.name == "pbt" and self.executors.workers > 1:
            raise SweepError("pbt copies weights between warm executors; take executors.workers 1")
        if self.executors.workers > 1 and (self.executors.memory_bytes or self.executors.oversize == "resize"):
            raise SweepError(
                "memory_bytes and oversize are of warm executors; with executors.workers above 1 leave them out"
            )

    def _check_inference(self) -> None:
        if self.evaluation is None:
            raise SweepError("an inference sweep needs an evaluation: what its trials render")
        for name in ("data", "where", "render"):
            if getattr(self, name):
                raise SweepError(f"an inference sweep trains nothing; leave {name} out")
        if self.scheduler.name != "none":
            raise SweepError("asha and pbt stop training trials; an inference sweep takes scheduler none")
        if self.budget.tokens is not None or len(self.seeds) > 1:
            raise SweepError("tokens and seeds are of training; an inference sweep has evaluation.seeds")
        if self.executors.workers > 1:
            raise SweepError("executors.workers is of training; an inference sweep takes executors.count")
        if self.executors.oversize == "resize":
            raise SweepError("oversize: resize makes training steps smaller; an inference sweep takes refuse")


def read_sweep(path: Path) -> Sweep:
    """Raises SweepError; relative paths in the file begin where the command is run, as on the command line."""
    return parse_sweep(read_yaml(path, SweepError))


def parse_sweep(written: object) -> Sweep:
    """Raises SweepError with up to three faults, a misspelt field with the nearest name."""
    if not isinstance(written, Mapping):
        raise SweepError(f"a sweep is {shown(written)}; it must be a mapping with name, kind, space, objectives")
    try:
        return Sweep.model_validate(dict(written))
    except ValidationError as error:
        faults = [_sentence(fault) for fault in error.errors(include_url=False)[:3]]
        raise SweepError("; ".join(faults)) from None


def _sentence(fault: Mapping) -> str:
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SakugaError):
        return cause.message
    place = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        return f"a sweep has no field {shown('.'.join(place))}{did_you_mean(place[-1], _known(place[:-1]))}"
    if fault["type"] == "missing":
        return f"the sweep lacks {'.'.join(place)}; add it"
    wish = "write a list, such as [A, B]" if fault["type"] == "tuple_type" else fault["msg"]
    return f"{'.'.join(place)} is {shown(fault.get('input'))}; {wish}"


def _known(place: list[str]) -> tuple[str, ...]:
    """Fields of the model at that place of the file."""
    parts = {
        "evaluation": Evaluation,
        "search": Search,
        "scheduler": Scheduler,
        "budget": Budget,
        "executors": Executors,
    }
    model = parts.get(place[0], Sweep) if place else Sweep
    return tuple(model.model_fields)
