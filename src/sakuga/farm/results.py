"""What a bulk run leaves behind beside its videos: `results.jsonl`, `summary.json`, and what counts as finished.

A receipt is the commit point of a video: it is written last and names the key of its recipe. A row whose receipt has
the row's key and whose files lie beside it needs no render. Knows no Ray.

Run: pytest tests/unit/test_results.py
"""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sakuga.media import write_bytes_atomic

log = logging.getLogger(__name__)

RESULTS_NAME = "results.jsonl"
SUMMARY_NAME = "summary.json"
VIDEO_SUFFIX, THUMBNAIL_SUFFIX, SPRITES_SUFFIX, RECEIPT_SUFFIX = ".mp4", ".webp", ".sprites.webp", ".json"
PICTURE_SUFFIX = ".png"  # of a render of one frame


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """How one manifest row ended: a line of `results.jsonl`. Paths are relative to the output folder."""

    row: str
    line: int
    """Line or row number in the manifest, from 1."""
    name: str
    status: str
    """ "done", "skipped" (finished by an earlier run) or "failed"."""
    key: str | None = None
    """Render key; None when the row gave no recipe."""
    video: str | None = None
    receipt: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Per stage; of a skipped row those of the run that rendered it."""
    attempts: int = 0
    error: dict[str, str] | None = None
    """`code` and `message` of a failed row."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkSummary:
    """The whole run in figures: `summary.json`."""

    out: str
    videos: int
    """Rows of the manifest."""
    done: int
    skipped: int
    failed: int
    not_run: int
    """Rows that an interruption left over."""
    wall_s: float
    videos_per_min: float
    """Rendered by this run, over its wall time with all start-up."""
    seconds: dict[str, float]
    """Per stage, summed over the videos that this run rendered."""
    errors: dict[str, int]
    """Failed rows by error code."""
    num_workers: int

    @property
    def exit_code(self) -> int:
        """0 when every row has its video, else 1."""
        return 1 if self.failed or self.not_run else 0

    def as_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def summarise(
    results: Sequence[RowResult], *, num_rows: int, wall_s: float, num_workers: int, out: Path
) -> BulkSummary:
    """Count `results` of a run over `num_rows` rows."""
    status = Counter(result.status for result in results)
    seconds: Counter[str] = Counter()
    for result in results:
        if result.status == "done":
            seconds.update(result.seconds)
    return BulkSummary(
        out=str(out),
        videos=num_rows,
        done=status["done"],
        skipped=status["skipped"],
        failed=status["failed"],
        not_run=num_rows - len(results),
        wall_s=round(wall_s, 3),
        videos_per_min=round(60 * status["done"] / wall_s, 3) if wall_s > 0 else 0.0,
        seconds={stage: round(s, 3) for stage, s in seconds.items()},
        errors=dict(Counter(result.error["code"] for result in results if result.error)),
        num_workers=num_workers,
    )


def write_results(out: Path, results: Iterable[RowResult]) -> None:
    """All results in manifest order, whole or not at all. Raises DiskFullError or OutputError."""
    ordered = sorted(results, key=lambda result: result.line)
    write_bytes_atomic(out / RESULTS_NAME, "".join(f"{result.to_json()}\n" for result in ordered).encode())


def append_result(out: Path, result: RowResult) -> None:
    """One more line while the run goes on; `write_results` puts them in order at its end."""
    with (out / RESULTS_NAME).open("a", encoding="utf-8") as file:
        file.write(f"{result.to_json()}\n")


def finished_receipt(out: Path, name: str, key: str) -> Mapping[str, dict[str, float]] | None:
    """The receipt of a finished render of `key` under `name`, or None when something of it is missing.

    A receipt that cannot be read counts as missing, and is logged: the row is rendered again.
    """
    path = out / f"{name}{RECEIPT_SUFFIX}"
    try:
        receipt = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("receipt %s cannot be read (%s); rendering again", path, error)
        return None
    files = [out / f"{name}{suffix}" for suffix in (VIDEO_SUFFIX, THUMBNAIL_SUFFIX, SPRITES_SUFFIX)]
    if not isinstance(receipt, dict) or receipt.get("key") != key or "seconds" not in receipt:
        return None
    listed = receipt.get("files")
    if isinstance(listed, dict) and "picture" in listed:
        files.append(out / f"{name}{PICTURE_SUFFIX}")
    return receipt if all(path.is_file() and path.stat().st_size for path in files) else None
