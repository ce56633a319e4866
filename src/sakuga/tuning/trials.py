"""What a trial came to, and the folder of a sweep, which is all there is to know of it.

    OUT/NAME/sweep.json             the checked sweep
    OUT/NAME/trials/ID/result.json  of each trial that has ended; with lora.safetensors of a training trial
    OUT/NAME/trials/ID/curve.jsonl  what it reported on its way; state/ has what one under way needs to go on
    OUT/NAME/prepared/FRAMES        the data of a training sweep at each length, with one cache
    OUT/NAME/cases/                 pictures and targets of the evaluation
    OUT/NAME/renders/KEY.mkv, .json what was rendered, by render key, so that nothing is rendered twice
    OUT/NAME/results.json, report.html, tensorboard/, optuna.sqlite, ray/

Run: pytest tests/unit/test_tuning_trials.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sakuga.errors import SweepError, shown
from sakuga.media import check_output_dir, write_json_atomic
from sakuga.tuning.space import Point, words
from sakuga.tuning.sweepfile import Sweep, parse_sweep

RESULT = "result.json"
CURVE = "curve.jsonl"
DONE, STOPPED, FAILED, REFUSED = "done", "stopped", "failed", "refused"
STATES = (DONE, STOPPED, FAILED, REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFigures:
    """What one render, or one training seed, measured."""

    name: str
    figures: Mapping[str, float]
    render_key: str | None = None
    """Of the render's files in `renders/`."""
    reference_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A trial that has ended."""

    id: str
    point: Point
    state: str
    """done; stopped by the scheduler; failed; refused before it began."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Means over `rows`."""
    rows: tuple[CaseFigures, ...] = ()
    reason: str | None = None
    """Why it failed, was refused or resized: code and sentence."""
    seed: int = 0
    """Of training."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """Fields of a request that render as this trial did; of a training trial those of its evaluation."""
    lora: str | None = None
    """The file that was trained, relative to the trial's folder."""
    overhead_s: float | None = None
    """From the executor's being free to this trial's first step or render."""
    wall_s: float = 0.0

    @property
    def words(self) -> str:
        return words(self.point)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON; `from_dict` is the way back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TrialResult:
        """Raises SweepError."""
        try:
            rows = values.get("rows", ())
            assert isinstance(rows, (list, tuple))
            return cls(**{**values, "rows": tuple(CaseFigures(**row) for row in rows)})  # ty: ignore
        except (TypeError, AttributeError, AssertionError) as error:
            raise SweepError(f"a trial's result is damaged ({error}); remove it and resume the sweep") from error


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """Where a sweep lies."""

    path: Path

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    @property
    def renders(self) -> Path:
        return self.path / "renders"

    @property
    def cases(self) -> Path:
        return self.path / "cases"

    @property
    def prepared(self) -> Path:
        return self.path / "prepared"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def trial(self, trial_id: str) -> Path:
        return self.trials / trial_id

    def create(self, sweep: Sweep) -> None:
        """Keep the sweep here, or find it again; the number of executors may change.

        Raises SweepError when another one has the name, OutputError.
        """
        path = self.path / "sweep.json"
        if path.is_file():
            kept = self.sweep()
            if kept.content_sha256 != sweep.content_sha256:
                raise SweepError(f"{shown(self.path)} holds a sweep with other content; give this one another name")
            if kept == sweep:
                return
        check_output_dir(self.path)
        write_json_atomic(path, sweep.model_dump(mode="json"))

    def sweep(self) -> Sweep:
        """Raises SweepError when there is none."""
        try:
            return parse_sweep(json.loads((self.path / "sweep.json").read_text(encoding="utf-8")))
        except OSError:
            beside = sorted(each.parent.name for each in self.path.parent.glob("*/sweep.json"))
            there = (
                f"; {shown(self.path.parent)} has {', '.join(beside)}"
                if beside
                else "; start one with `sakuga sweep FILE`"
            )
            raise SweepError(f"there is no sweep {shown(self.path.name)}{there}") from None
        except ValueError as error:
            raise SweepError(
                f"{shown(self.path)} holds a damaged sweep.json ({error}); start the sweep again"
            ) from error

    def write(self, result: TrialResult) -> None:
        """The result, whole or not at all. Raises OutputError."""
        folder = self.trial(result.id)
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / RESULT, result.as_dict())

    def result(self, trial_id: str) -> TrialResult | None:
        """None for a trial that has not ended. Raises SweepError for a damaged one."""
        with contextlib.suppress(OSError):
            try:
                return TrialResult.from_dict(json.loads((self.trial(trial_id) / RESULT).read_text(encoding="utf-8")))
            except ValueError as error:
                raise SweepError(f"result of trial {trial_id} is damaged ({error}); remove it and resume") from error
        return None

    def forget_failed(self) -> None:
        """Results of trials that failed or were refused, with what they had reported: they are run again."""
        for result in self.results():
            if result.state in (FAILED, REFUSED):
                for name in (CURVE, RESULT):
                    (self.trial(result.id) / name).unlink(missing_ok=True)

    def add_to_curve(self, trial_id: str, line: Mapping[str, object]) -> None:
        """What a trial reports: its share, tokens and figures."""
        path = self.trial(trial_id) / CURVE
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_bytes() if path.is_file() else b""
        whole = kept[: kept.rfind(b"\n") + 1]
        if whole != kept:  # a dying process has left its last line half written
            path.write_bytes(whole)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def curve(self, trial_id: str) -> list[dict[str, object]]:
        """What was added; without a line that a dying process has left half written."""
        path = self.trial(trial_id) / CURVE
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def results(self) -> Sequence[TrialResult]:
        """All trials that have ended, in the order in which they did."""
        found = sorted(self.trials.glob(f"*/{RESULT}"), key=lambda path: (path.stat().st_mtime, path))
        results = [self.result(path.parent.name) for path in found]
        return [result for result in results if result is not None]
