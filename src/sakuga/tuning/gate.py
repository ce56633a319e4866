"""The gate: renders of held-out cases, held to the reference profile, before a profile may reach users.

    model: wan-mini
    num_frames: 17
    cases: {synth: fairy, first_seed: 67108864, count: 6}
    reference: {num_inference_steps: 20}
    bars: {ref_ssim: {min: 0.9}, motion_ratio: {min: 0.8}, flicker_ratio: {max: 1.25}}

Bars hold for the means over the cases; what fails is shown frame beside frame. A figure that was not measured fails.

Run: pytest tests/unit/test_tuning_gate.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from sakuga.errors import GateError, InputError, SakugaError, did_you_mean, shown
from sakuga.media import contact_sheet, save_image
from sakuga.quality import ssim, weighted_total
from sakuga.quality.frames import Frames
from sakuga.recipe.request import parse_request
from sakuga.tuning.cases import CaseSpec, cases_of
from sakuga.tuning.figures import Bar, faults, parse_bars
from sakuga.tuning.measure import SIZE_FIELDS, CaseRenderer, means
from sakuga.tuning.profiles import PROFILE_FIELDS
from sakuga.tuning.renders import RenderStore
from sakuga.tuning.sweepfile import AGAINST_REFERENCE, AGAINST_TARGET, RENDERED, Evaluation, Strict
from sakuga.tuning.trials import CaseFigures
from sakuga.tuning.yamlfile import read_yaml
from sakuga.wan.catalogue import card

SHOWN_FAILURES = 3


class Gate(Strict):
    """One gate file. Make it with `read_gate`."""

    model: str
    width: Annotated[int, Field(ge=16)] | None = None
    """None: the card's."""
    height: Annotated[int, Field(ge=16)] | None = None
    num_frames: Annotated[int, Field(ge=1)] | None = None
    cases: Evaluation
    reference: dict[str, object] = Field(default_factory=dict)
    """Fields of the reference render beside the card's; a candidate's LoRAs, those for few steps apart, are its too."""
    bars: dict[str, object]
    tier: Literal["draft", "standard"] = "standard"
    """What requests may take a profile for that passed here."""
    canary_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    audit_share: Annotated[float, Field(ge=0, le=1)] = 0.05

    @field_validator("bars")
    @classmethod
    def _bars(cls, value: dict[str, object]) -> dict[str, object]:
        parse_bars(value)
        return value

    @field_validator("reference")
    @classmethod
    def _reference(cls, value: dict[str, object]) -> dict[str, object]:
        for name in value:
            if name not in PROFILE_FIELDS:
                raise GateError(f"the reference has {shown(name)}{did_you_mean(name, PROFILE_FIELDS)}")
        try:
            parse_request({"prompt": "a dancer", **value})
        except InputError as error:
            raise GateError(f"the reference: {error.message}") from error
        return value

    @model_validator(mode="after")
    def _can_be_measured(self) -> Gate:
        known = RENDERED | AGAINST_REFERENCE | {"weighted_total", "speedup"}
        known |= AGAINST_TARGET if self.cases.has_targets else frozenset()
        for bar in self.limits:
            if bar.figure not in known:
                raise GateError(
                    f"no render of this gate has {bar.figure}; it can have bars on {', '.join(sorted(known))}"
                )
        return self

    @property
    def limits(self) -> tuple[Bar, ...]:
        return parse_bars(self.bars)

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, height, frames."""
        found = card(self.model)
        return self.width or found.width, self.height or found.height, self.num_frames or found.num_frames

    @property
    def cases_sha256(self) -> str:
        """Of the cases and their size: gates that differ in bars share their renders."""
        about = {"cases": self.cases.model_dump(mode="json"), "model": self.model, "size": self.size}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstFrame:
    """Where a case is least like the reference."""

    case: str
    frame: int
    ssim: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate found."""

    figures: Mapping[str, float]
    faults: tuple[str, ...]
    rows: tuple[CaseFigures, ...]
    worst: tuple[WorstFrame, ...] = ()
    sheet: Path | None = None
    """Reference and candidate of the worst cases; of a failure only."""

    @property
    def passed(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, object]:
        return {
            "passed": self.passed,
            "faults": list(self.faults),
            "figures": dict(self.figures),
            "worst": [dataclasses.asdict(frame) for frame in self.worst],
            "sheet": None if self.sheet is None else str(self.sheet),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


def read_gate(path: Path) -> Gate:
    """Raises GateError, with up to three faults."""
    written = read_yaml(path, GateError)
    if not isinstance(written, Mapping):
        raise GateError(f"{shown(path)} holds {shown(written)}; a gate has model, cases and bars")
    try:
        gate = Gate.model_validate(dict(written))
        card(gate.model).check_geometry(*gate.size)
    except ValidationError as error:
        raise GateError("; ".join(_sentence(fault) for fault in error.errors(include_url=False)[:3])) from None
    except InputError as error:
        raise error if isinstance(error, GateError) else GateError(f"{shown(path)}: {error.message}") from error
    return gate


def judge(
    gate: Gate,
    fields: Mapping[str, object],
    reference: Mapping[str, object],
    *,
    folder: Path,
    store: RenderStore,
    weights: str | None = None,
    device: str = "cpu",
    subjective: Mapping[str, float] | None = None,
) -> Verdict:
    """Render what is not in the store yet, measure, compare with the bars. `folder` keeps the cases and the sheet.

    `subjective` is what people gave each case, 0 to 20, for the weighted total. Raises what rendering raises, and
    GateError when a case was not rated.
    """
    width, height, num_frames = gate.size
    found = card(gate.model)
    sizes = dict(zip(SIZE_FIELDS, (width, height, num_frames, found.fps), strict=True))
    spec = CaseSpec(
        width=width, height=height, num_frames=num_frames, fps=found.fps, takes_image=found.takes_first_frame
    )
    renderer = CaseRenderer(gate.model, weights, store, device=device)
    cases = cases_of(gate.cases, spec, folder / "cases")
    unrated = [case.name for case in cases if subjective is not None and case.name not in subjective]
    if unrated:
        raise GateError(
            f"nobody rated case {unrated[0]} of this trial; rate all of the gate's pairs with `sakuga rate`"
        )
    rows = tuple(renderer.measure(case, {**fields, **sizes}, {**reference, **sizes}) for case in cases)
    figures = means(rows)
    if subjective is not None:
        given = sum(subjective[case.name] for case in cases) / len(cases)
        figures["weighted_total"] = weighted_total(given, figures["ref_psnr_db"], figures["ref_ssim"])
    found_faults = tuple(faults(figures, gate.limits))
    if not found_faults:
        return Verdict(figures=figures, faults=(), rows=rows)
    worst, strips = _worst(rows, store)
    sheet = folder / "failed.png"
    save_image(sheet, contact_sheet(strips))
    return Verdict(figures=figures, faults=found_faults, rows=rows, worst=worst, sheet=sheet)


def _worst(rows: Sequence[CaseFigures], store: RenderStore) -> tuple[tuple[WorstFrame, ...], list[tuple[str, Frames]]]:
    """The cases least like their references, with their worst frames and strips to look at."""
    least = sorted(rows, key=lambda row: row.figures.get("ref_ssim", 1.0))[:SHOWN_FAILURES]
    found, strips = [], []
    for row in least:
        pair = [store.find(str(key)) for key in (row.reference_key, row.render_key)]
        beside, made = (None if each is None else each.frames_THWC for each in pair)
        if beside is None or made is None:
            continue
        per_frame = [1.0 if value is None else value for value in ssim(beside, made).per_frame]
        frame = int(np.argmin(per_frame))
        found.append(WorstFrame(case=row.name, frame=frame, ssim=per_frame[frame]))
        strips += [(f"{row.name}: reference", beside), (f"candidate, worst at frame {frame}", made)]
    return tuple(found), strips


def _sentence(fault: Mapping) -> str:
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SakugaError):
        return cause.message
    place = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        known = Evaluation.model_fields if place[0] == "cases" and len(place) > 1 else Gate.model_fields
        return f"a gate has no field {shown('.'.join(place))}{did_you_mean(place[-1], known)}"
    if fault["type"] == "missing":
        return f"the gate lacks {'.'.join(place)}; add it"
    return f"{'.'.join(place)} is {shown(fault.get('input'))}; {fault['msg']}"
