"""Progress of a bulk run: events that workers append to `OUT/progress.jsonl`, and what a reader makes of them.

Workers are other processes, often on other machines, and their output is no terminal; so each step is one line in a
file, and whoever wants bars follows the file. Knows neither Ray nor terminals (`cli/bars.py` draws).

Run: pytest tests/unit/test_progress.py
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sakuga.errors import shown

log = logging.getLogger(__name__)

PROGRESS_NAME = "progress.jsonl"
STAGES = ("queued", "encode", "denoise", "decode", "done", "skipped", "failed")
FINAL_STAGES = frozenset({"done", "skipped", "failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """One line of the file."""

    t: float
    """Seconds since 1970: events of several machines meet here, so no monotonic clock would do."""
    row: str
    """Id of the manifest row."""
    name: str
    """Name of the video without its ending."""
    stage: str
    """One of `STAGES`."""
    step: int = 0
    """Denoise steps done."""
    num_steps: int = 0
    step_s: float | None = None
    """Seconds of the last step."""
    error: dict[str, str] | None = None
    """`code` and `message`, only with stage "failed"."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


_FIELDS = frozenset(f.name for f in dataclasses.fields(ProgressEvent))


def parse_event(line: str | bytes) -> ProgressEvent:
    """The event of one line; fields of later versions are left out.

    Raises:
        ValueError, TypeError: the line is no event.
    """
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"not an object: {shown(values)}")
    return ProgressEvent(**{name: value for name, value in values.items() if name in _FIELDS})


def append_event(path: Path, event: ProgressEvent) -> None:
    """Add one line. A single write with O_APPEND: lines of several processes on one local disk do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, (event.to_json() + "\n").encode())
    finally:
        os.close(descriptor)


class ProgressTail:
    """Reads what was appended since the last call; a line still being written waits for its end."""

    def __init__(self, path: Path, *, only_new_file: bool = False) -> None:
        """`only_new_file` leaves out the file that exists now: a run that begins later starts another one."""
        self._path = path
        self._offset = 0
        self._inode = -1
        self._old_inode = -1
        if only_new_file:
            with contextlib.suppress(OSError):  # no file yet
                self._old_inode = path.stat().st_ino

    def read_new(self) -> list[ProgressEvent]:
        """New events in file order. A file begun anew is read from its start.

        Progress is for the eyes: a file that cannot be read has nothing new, and a line that is no event (two machines
        on one network folder may mix theirs) is logged and left out. What is wrong with a folder, the run itself says.
        """
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino == self._old_inode:
                    return []
                if stat.st_ino != self._inode or stat.st_size < self._offset:
                    self._inode, self._offset = stat.st_ino, 0
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return list(self._events(complete))

    def _events(self, complete: bytes) -> Iterator[ProgressEvent]:
        for line in complete.split(b"\n")[:-1]:  # str.splitlines would also cut at U+2028 inside a message
            try:
                yield parse_event(line)
            except (ValueError, TypeError) as error:
                log.warning("no event in %s: %s (%s)", self._path, shown(line), error)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProgress:
    """Where one video stands."""

    row: str
    name: str
    stage: str = "queued"
    step: int = 0
    num_steps: int = 0
    step_s: float | None = None
    """Mean seconds of a step so far: steadier than the last one."""
    denoise_began: float | None = None
    began: float | None = None
    ended: float | None = None
    error: dict[str, str] | None = None

    @property
    def fraction(self) -> float:
        """Share that is done, 0 to 1: the denoise steps, as encode and decode are short beside them."""
        if self.stage in FINAL_STAGES:
            return 1.0
        return self.step / self.num_steps if self.num_steps else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last step, or None before the first one is timed."""
        if self.stage in FINAL_STAGES:
            return 0.0
        return None if self.step_s is None else (self.num_steps - self.step) * self.step_s

    @property
    def seconds(self) -> float | None:
        """Seconds from the first stage to the end."""
        return None if self.began is None or self.ended is None else self.ended - self.began

    def advanced(self, event: ProgressEvent) -> "RowProgress":
        """This row after `event`. An `encode` after later stages is a retry and starts the row anew."""
        restarted = event.stage in ("queued", "encode") and self.stage not in ("queued", "encode")
        base = RowProgress(row=self.row, name=self.name, began=self.began) if restarted else self
        denoise_began = base.denoise_began
        if event.stage == "denoise" and denoise_began is None:
            # The first event of the stage may be the end of step 1: count that step's own seconds.
            denoise_began = event.t - (event.step_s or 0.0) * event.step
        timed = event.stage == "denoise" and event.step > 0 and denoise_began is not None
        return dataclasses.replace(
            base,
            stage=event.stage,
            step=max(event.step, base.step),
            num_steps=event.num_steps or base.num_steps,
            step_s=(event.t - denoise_began) / event.step if timed and denoise_began is not None else base.step_s,
            denoise_began=denoise_began,
            began=base.began if base.began is not None or event.stage == "queued" else event.t,
            ended=event.t if event.stage in FINAL_STAGES else None,
            error=event.error,
        )


@dataclass(slots=True)
class Board:
    """All rows of a run, in the order in which they were first named."""

    rows: dict[str, RowProgress] = field(default_factory=dict)
    began: float | None = None
    """When the first row left the queue."""

    def apply(self, event: ProgressEvent) -> RowProgress:
        """Take in one event and return its row as it is now."""
        before = self.rows.get(event.row) or RowProgress(row=event.row, name=event.name)
        after = self.rows[event.row] = before.advanced(event)
        if self.began is None and event.stage in ("encode", "denoise", "decode"):
            self.began = event.t
        return after

    @property
    def num_ended(self) -> int:
        return sum(row.stage in FINAL_STAGES for row in self.rows.values())

    @property
    def num_failed(self) -> int:
        return sum(row.stage == "failed" for row in self.rows.values())

    @property
    def fraction(self) -> float:
        """Mean share of all rows, 0 for an empty board."""
        return sum(row.fraction for row in self.rows.values()) / len(self.rows) if self.rows else 0.0

    def eta_s(self, now: float) -> float | None:
        """Seconds until all rows are done at the pace so far; None before there is a pace.

        Only rows of this run set the pace: skipped ones took no time.
        """
        worked = [row for row in self.rows.values() if row.stage != "skipped"]
        done = sum(row.fraction for row in worked)
        if self.began is None or done <= 0:
            return None
        return max(0.0, (now - self.began) * (len(worked) - done) / done)
