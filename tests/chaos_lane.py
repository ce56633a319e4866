"""A lane for the chaos run: the real `LaneWork` and engine of sleep in a Ray actor, with storage that can be broken.

The processes of a run share a folder: `fault` in it says what is wrong with storage, `cut` that an upload shall be cut,
`close` that lanes shall end; `lanes/NAME.jsonl` tells what a lane has seen, a line each, so that a kill -9 takes none
of it away.

Run: pytest tests/ray/test_chaos.py
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sakuga.cost import DEVICES
from sakuga.engine.session import Progress
from sakuga.engine.simulated import SimEngine
from sakuga.errors import DiskFullError, LeaseLostError, NumericsError, SakugaError, StorageError
from sakuga.farm.lane import LaneWork
from sakuga.farm.store_actor import connect
from sakuga.jobstore import Lane, LeasedRenders
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects, StoredObject

LEASE_S = 2.0
CLAIM_WAIT_S = 0.5
SPEED = 9.0
"""An H200 takes 9 s for the recipe."""
SLOW_S = 1.0
BAD_PROMPT = "no number"
"""A render of it fails, on every lane."""
STORAGE_FAULTS = ("storage", "disk_full", "slow", "doubtful", "cut")


def recipe(seed: int, *, is_bad: bool = False) -> RenderRecipe:
    return RenderRecipe(
        model="wan2.1-t2v-14b", weights_sha256="0" * 64, prompt=BAD_PROMPT if is_bad else "A dancer.", width=832,
        height=480, num_frames=17, num_inference_steps=8, precision="bf16", seed=seed,
    )  # fmt: skip


class ChaosEngine(SimEngine):
    """Its videos differ from render to render."""

    def step(self, at: Progress, /) -> Progress:
        assert self._recipe is not None
        if self._recipe.prompt == BAD_PROMPT and at.step == 1:
            raise NumericsError("the latents are not finite; try another seed")
        return super().step(at)

    def finish(self, at: Progress, folder: Path) -> Mapping[str, object]:
        receipt = super().finish(at, folder)
        with (folder / "video.mp4").open("ab") as file:
            file.write(str(receipt["key"]).encode())
        return receipt


class FaultyObjects(FolderObjects):
    """A folder that fails in the way that a file names, for as long as it does."""

    def __init__(self, root: Path, folder: Path) -> None:
        super().__init__(root)
        self._fault, self._cut = folder / "fault", folder / "cut"

    def put(self, name: str, path: Path) -> StoredObject:
        kind = self._kind()
        if self._takes_cut():
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(".cut.tmp").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "storage":
            raise StorageError(f"{name} was refused by the server: 503; look at it")
        if kind == "disk_full":
            raise DiskFullError(f"no space for {name}; free some")
        if kind == "slow":
            time.sleep(SLOW_S)
        stored = super().put(name, path)
        if kind == "doubtful":
            raise StorageError(f"no answer about {name}; look at the server")
        return stored

    def get(self, name: str, path: Path) -> None:
        self._away(name)
        super().get(name, path)

    def names(self, prefix: str) -> list[str]:
        self._away(prefix)
        return super().names(prefix)

    def delete(self, prefix: str) -> int:
        self._away(prefix)
        return super().delete(prefix)

    def _away(self, name: str) -> None:
        if self._kind() == "storage":
            raise StorageError(f"{name} cannot be reached; check the endpoint")

    def _kind(self) -> str | None:
        try:
            return self._fault.read_text()
        except FileNotFoundError:
            return None

    def _takes_cut(self) -> bool:
        """One process takes the fault that ends it."""
        try:
            self._cut.rename(self._cut.with_suffix(f".{os.getpid()}"))
        except FileNotFoundError:
            return False
        return True


class Watched:
    """The lanes' side of the store; what it refuses is told."""

    def __init__(self, renders: LeasedRenders, tell: Callable[..., None]) -> None:
        self._renders, self._tell = renders, tell

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._renders, name)

        def ask(*args: object, **kwargs: object) -> object:
            try:
                return method(*args, **kwargs)
            except LeaseLostError:
                self._tell(refused=name)
                raise

        return ask


class ChaosLane:
    """The actor."""

    def __init__(self, name: str, url: str, folder: str) -> None:
        self._closing, self._log = Path(folder, "close"), Path(folder, "lanes", f"{name}.jsonl")
        renders = connect(url, lease_s=LEASE_S, objects=str(Path(folder, "objects"))).renders
        self._work = LaneWork(
            lane=Lane(name=name, models=(recipe(0).model,)),
            renders=Watched(renders, self._tell),  # ty: ignore[invalid-argument-type]  # it acts alike
            objects=FaultyObjects(Path(folder, "objects"), Path(folder)),
            session=ChaosEngine(DEVICES["h200"], speed=SPEED),
            should_close=self._closing.exists,
            heartbeat_s=LEASE_S / 3,
            orders_s=0.1,
            snapshot_steps=2,
            snapshot_s=0.0,
            storage_patience_s=1.5,
            parked_s=0.5,
        )

    def pid(self) -> int:
        return os.getpid()

    def run(self) -> None:
        """Until it shall close."""
        while not self._closing.exists():
            try:
                outcome = self._work.run_one(CLAIM_WAIT_S)
            except SakugaError as error:  # as a replica does: the next turn may be better
                self._tell(error=error.code, message=error.message)
                time.sleep(0.2)
                continue
            if outcome is not None:
                self._tell(outcome=outcome.value)

    def _tell(self, **seen: object) -> None:
        with self._log.open("a") as file:
            file.write(f"{json.dumps({'at': time.time()} | seen)}\n")
