"""What a run leaves beside its checkpoints: one JSON line a step, and the same for TensorBoard.

    OUT/log.jsonl           {"step", "loss", "grad_norm", "lr", "step_s", "tokens_per_s", "time"}, and lines with
                            {"step", "heldout/loss", ...} and {"step", "validation/psnr_db", ...}
    OUT/tensorboard/        the same as curves

Written by the first worker. A resumed run cuts off the lines that it will write again.
Run: pytest tests/unit/test_training_run.py
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from sakuga.media import write_bytes_atomic
from sakuga.media.files import output_error
from sakuga.training.trainer import StepReport

LOG_NAME = "log.jsonl"


class RunLog:
    """A watcher that writes."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Raises OutputError."""
        self.path = folder / LOG_NAME
        kept = [line for line in read_log(folder) if line["step"] <= first_step and first_step > 0]
        write_bytes_atomic(self.path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def on_step(self, report: StepReport, step_s: float) -> None:
        figures = {
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "lr": report.lr,
            "step_s": step_s,
            "tokens_per_s": report.num_tokens / step_s,
        }
        self.write(report.step, figures)

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.write(step, metrics)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        line = {"step": step, **{name: _rounded(value) for name, value in figures.items()}, "time": time.time()}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise output_error(self.path, error) from error
        for name, value in figures.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        self._board.close()


def read_log(folder: Path) -> Iterator[dict]:
    """Lines so far; one that is being written is left for later."""
    path = folder / LOG_NAME
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _rounded(value: float) -> float:
    """Six digits.

    >>> _rounded(0.123456789), _rounded(1234567.8)
    (0.123457, 1234570.0)
    """
    return value if value == 0 or not math.isfinite(value) else round(value, 5 - math.floor(math.log10(abs(value))))
