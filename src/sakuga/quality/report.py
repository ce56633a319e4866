"""A report on a set of renders: every figure of every case, and means with 95 % confidence intervals over the cases.

    report = report_on([Case(name="jump", gen=frames_THWC, target=drawn_THWC, prompt="..."), ...])
    report.means()["drift"].low

A case needs no reference: it has flicker with motion, warp error, drift and identity all the same. A case that cannot
be read fails alone. Where people rated the cases, they have the weighted total as well.

Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_report.py
"""

import csv
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sakuga.errors import ManifestError, SakugaError, VideoError, shown
from sakuga.quality.evaluate import EvaluationReport, Failure, learned_figures, weighted_total
from sakuga.quality.figures import measured
from sakuga.quality.frames import Frames

if TYPE_CHECKING:
    from sakuga.quality.learned import LearnedMetric  # which needs torch

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One render and what it is held against: frames, or files that are read when their turn comes."""

    name: str
    gen: Frames | Path
    reference: Frames | Path | None = None
    """The same request without a shortcut."""
    target: Frames | Path | None = None
    """The video that was hoped for."""
    prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """What was measured on one case; a figure that could not be is absent, with a note."""

    name: str
    figures: dict[str, float]
    per_frame: dict[str, tuple[float, ...]]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        per_frame = {name: list(curve) for name, curve in self.per_frame.items()}
        return {"name": self.name, "figures": self.figures, "per_frame": per_frame, "notes": list(self.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over cases, and where the mean of all such cases lies with 95 % confidence; one case has no interval."""

    mean: float
    low: float | None
    high: float | None
    num_cases: int

    def as_dict(self) -> dict[str, float | int | None]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "num_cases": self.num_cases}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """All cases, those that failed, and what can only be said of the whole set."""

    rows: tuple[CaseReport, ...]
    failures: tuple[Failure, ...] = ()
    of_set: dict[str, float]
    """Figures of learned metrics that need many videos."""
    notes: tuple[str, ...] = ()

    def means(self) -> dict[str, Interval]:
        """By figure, over the cases that have it. A ratio is that of the means: a mean of ratios belongs to the case
        whose reference hardly moves."""
        names = dict.fromkeys(name for row in self.rows for name in row.figures)
        found = {name: interval([row.figures[name] for row in self.rows if name in row.figures]) for name in names}
        for name in ("flicker", "motion"):
            rows = [r.figures for r in self.rows if name in r.figures and f"ref_{name}" in r.figures]
            if any(figures[f"ref_{name}"] > 0 for figures in rows):
                found[f"{name}_ratio"] = _ratio_interval([f[name] for f in rows], [f[f"ref_{name}"] for f in rows])
        return found

    def summary(self) -> dict[str, object]:
        """For JSON, without the cases one by one."""
        return {
            "num_cases": len(self.rows),
            "confidence": CONFIDENCE,
            "mean": {name: value.as_dict() for name, value in self.means().items()},
            "of_set": self.of_set,
            "failed": [{"name": f.name, "code": f.code, "message": f.message} for f in self.failures],
            "notes": list(self.notes),
        }

    def as_dict(self) -> dict[str, object]:
        """For JSON. No infinity, no NaN."""
        return self.summary() | {"rows": [row.as_dict() for row in self.rows]}


def report_on(
    cases: Iterable[Case],
    *,
    learned: Sequence["LearnedMetric"] = (),
    subjective: Mapping[str, float] | None = None,
) -> SetReport:
    """Measure every case. `subjective` is what people gave to a case by its name, 0 to 20."""
    rows: list[CaseReport] = []
    failures: list[Failure] = []
    for case in cases:
        try:
            rows.append(_with_people(_measure(case, learned), subjective or {}))
        except SakugaError as error:
            logger.warning("case failed name=%s code=%s: %s", case.name, error.code, error.message)
            failures.append(Failure(name=case.name, code=error.code, message=error.message))
    return _closed(rows, failures, learned)


def report_of_pairs(
    pairs: EvaluationReport,
    *,
    learned: Sequence["LearnedMetric"] = (),
    subjective: Mapping[str, float] | None = None,
) -> SetReport:
    """The same from pairs that were evaluated with those learned metrics; their reference is the target here."""
    rows = []
    for name, report in pairs.rows:
        figures = {figure: value for figure, value in report.figures().items() if value is not None}
        per_frame = {"drift": report.drift.curve} | ({"identity": report.identity.curve} if report.identity else {})
        row = CaseReport(name=name, figures=figures, per_frame=per_frame, notes=report.notes)
        rows.append(_with_people(row, subjective or {}))
    return _closed(rows, list(pairs.failures), learned)


def _measure(case: Case, learned: Sequence["LearnedMetric"]) -> CaseReport:
    gen_THWC, reference_THWC, target_THWC = (_frames(video) for video in (case.gen, case.reference, case.target))
    if gen_THWC is None:
        raise VideoError(f"case {shown(case.name)} has no generated video")
    found = measured(gen_THWC, reference_THWC=reference_THWC, target_THWC=target_THWC, prompt=case.prompt)
    notes = list(found.notes)
    wanted_THWC = target_THWC if target_THWC is not None else reference_THWC
    more = learned_figures(learned, gen_THWC, wanted_THWC, case.prompt, notes)
    figures = found.figures | {name: value for name, value in more.items() if value is not None}
    return CaseReport(name=case.name, figures=figures, per_frame=found.per_frame, notes=tuple(notes))


def _frames(video: Frames | Path | None) -> Frames | None:
    if not isinstance(video, Path):
        return video
    from sakuga.media import read_video  # here, so that arrays can be measured where there is no PIL

    return read_video(video)


def _with_people(row: CaseReport, subjective: Mapping[str, float]) -> CaseReport:
    """The case with what people gave and the weighted total: against the target, or else against the reference."""
    if row.name not in subjective:
        return row
    given = {"subjective": subjective[row.name]}
    for prefix in ("", "ref_"):
        if f"{prefix}psnr_db" in row.figures and f"{prefix}ssim" in row.figures:
            psnr_db, ssim = row.figures[f"{prefix}psnr_db"], row.figures[f"{prefix}ssim"]
            given["weighted_total"] = weighted_total(given["subjective"], psnr_db, ssim)
            break
    return replace(row, figures=row.figures | given)


def _closed(rows: list[CaseReport], failures: list[Failure], learned: Sequence["LearnedMetric"]) -> SetReport:
    whole = {metric.name: metric.of_set() for metric in learned}
    return SetReport(
        rows=tuple(rows),
        failures=tuple(failures),
        of_set={name: value for name, (value, _) in whole.items() if value is not None},
        notes=tuple(f"{name}: {note}" for name, (_, note) in whole.items() if note),
    )


def interval(values: Sequence[float]) -> Interval:
    """Mean and Student's t interval of at least one value.

    >>> found = interval([1.0, 2.0, 3.0])
    >>> found.mean, round(found.low, 4), round(found.high, 4)
    (2.0, -0.4841, 4.4841)
    """
    mean = math.fsum(values) / len(values)
    return _around(mean, [value - mean for value in values])


def _ratio_interval(parts: Sequence[float], wholes: Sequence[float]) -> Interval:
    """Of the ratio of two means, to first order (delta method)."""
    whole = math.fsum(wholes) / len(wholes)
    ratio = math.fsum(parts) / len(parts) / whole
    return _around(ratio, [(p - ratio * w) / whole for p, w in zip(parts, wholes, strict=True)])


def _around(mean: float, deviations: Sequence[float]) -> Interval:
    import scipy.stats  # 0.5 s to import

    count = len(deviations)
    if count < 2:
        return Interval(mean=mean, low=None, high=None, num_cases=count)
    error = float(np.sqrt(np.square(deviations).sum() / (count - 1) / count))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Interval(mean=mean, low=mean - half, high=mean + half, num_cases=count)


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by the name of the video without suffix, of a JSONL or CSV file that has `video` and `prompt`.

    A manifest's `id` names its video, too. Raises ManifestError with the line that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{shown(path)} cannot be read: {shown(str(error))}") from error
    lines = _csv_rows(text) if path.suffix.lower() == ".csv" else _json_rows(path, text)
    found: dict[str, str] = {}
    for number, row in lines:
        name, prompt = row.get("video") or row.get("id"), row.get("prompt")
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise ManifestError(f"{shown(path)}, line {number}, has no `video` (or `id`) and `prompt`: it names both")
        stem = Path(name).stem if row.get("video") else name
        if found.setdefault(stem, prompt) != prompt:
            raise ManifestError(f"{shown(path)}, line {number}: {shown(stem)} has two prompts, keep one")
    return found


def _csv_rows(text: str) -> Iterable[tuple[int, Mapping[str, object]]]:
    return enumerate(csv.DictReader(text.splitlines(keepends=True)), start=2)


def _json_rows(path: Path, text: str) -> Iterable[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ManifestError(f"{shown(path)}, line {number}, is no JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise ManifestError(f"{shown(path)}, line {number}, is no object with `video` and `prompt`")
        yield number, row
