"""Trials without a model: what they report follows from their point, and each says when it was run."""

import json
import os
import time
from pathlib import Path

from sakuga.errors import MemoryLimitError, NumericsError
from sakuga.tuning.runner import TrialReport
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.trials import DONE, CaseFigures, SweepFolder, TrialResult

SLICES = 4


class FakeRunner:
    """lr is the loss; rank 13 fails, 14 is refused, 15 ends its process, 16 waits for OUT/go, 17 has no end."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        self.sweep, self.folder = sweep, folder

    def begin(self, trial_id, point, seed):
        self.id, self.point, self.seed, self.done, self.path = trial_id, dict(point), seed, 0, []
        with (self.folder.path / "begun.txt").open("a") as file:
            file.write(f"{trial_id} {os.getpid()} {json.dumps(self.point)}\n")
        if point.get("rank") == 14:
            raise MemoryLimitError("rank 14 needs 3 GB; take less")

    def advance(self):
        if self.point.get("rank") == 13:
            raise NumericsError("the loss is not finite")
        if self.point.get("rank") == 15:
            os._exit(1)
        while self.point.get("rank") == 16 and self.done == 2 and not (self.folder.path / "go").exists():
            time.sleep(0.05)
        self.done += 1
        self.path.append(self.point.get("lr"))
        if self.point.get("rank") == 17:
            time.sleep(0.05)
            return TrialReport(figures=self._figures(), share=1e-6)
        return TrialReport(figures=self._figures(), share=self.done / SLICES)

    def save(self, folder):
        (Path(folder) / "fake.json").write_text(json.dumps([self.done, self.path]))

    def restore(self, folder):
        self.done, self.path = json.loads((Path(folder) / "fake.json").read_text())

    def end(self, state=DONE, reason=None):
        figures = self._figures() if state == DONE else {}
        result = TrialResult(
            id=self.id, point=self.point, state=state, figures=figures, reason=reason, seed=self.seed,
            rows=(CaseFigures(name=f"seed {self.seed}", figures=figures),), fields={"path": self.path},
        )  # fmt: skip
        self.folder.write(result)
        return result

    def _figures(self):
        return {
            "heldout_loss": float(self.point.get("lr", 1)) * (1 + 0.01 / max(1, self.done)) + 1e-6 * self.seed,
            "train_s": float(self.point.get("rank", 4)),
            "lora_bytes": 1.0,
        }


def begun(folder: SweepFolder) -> list[str]:
    """Ids, once for each time that a trial was begun."""
    return [line.split()[0] for line in (folder.path / "begun.txt").read_text().splitlines()]


def processes(folder: SweepFolder) -> set[str]:
    return {line.split()[1] for line in (folder.path / "begun.txt").read_text().splitlines()}
