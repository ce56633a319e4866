"""What a lane does with one render: claim it, go on from its last snapshot, step, save, publish under the fence.

It knows a render session, the job store and storage, and nothing of Ray: a Serve replica calls it, a test does too.
Between two steps it hears what the farm wants (cancel, make room) and whether it shall close; a thread keeps the lease
alive through the stages that are longer than a lease, for as long as the render makes progress.

Run: pytest tests/unit/test_lane.py
"""

import contextlib
import json
import logging
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from sakuga.engine.loop import Decision, SnapshotEvery, denoise, strongest
from sakuga.engine.session import InputFiles, Progress, RenderSession
from sakuga.errors import (
    ConflictError,
    InputError,
    LeaseLostError,
    LoraError,
    MemoryLimitError,
    NotFoundError,
    NumericsError,
    OutputError,
    SakugaError,
    StorageError,
)
from sakuga.jobstore import Artifact, Claim, Lane, LeasedRenders, Orders
from sakuga.media.files import sha256_of
from sakuga.recipe import IMAGE_ROLES, VIDEO_ROLES, RenderRecipe
from sakuga.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""A third of a lease."""
ORDERS_S = 0.25
"""The farm is asked between two steps, but not more often: a step of the mini model takes 0.03 s."""
STALL_S = 600.0
"""Without a step or a new stage for so long, the lease is left to end: something hangs."""
SNAPSHOT_STEPS = 5
SNAPSHOT_S = 5.0
"""Work worth saving: below it a snapshot costs more than it is likely to spare."""
STORAGE_PATIENCE_S = 300.0
"""How long a finished video waits in the lane for storage to come back."""
PARKED_S = 60.0
PREVIEW_S = 5.0
"""Between two pictures of how far a render is: nobody looks more often, and each is a file in storage."""
SNAPSHOT, PREVIEW = "snapshot-", "preview-"
MANIFEST = "manifest.json"
"""Written last: what is in storage without it belongs to nobody."""
THE_JOBS_OWN = (InputError, LoraError, NumericsError, MemoryLimitError)
"""Errors that another lane would meet too."""
OF_STORAGE = (NotFoundError, ConflictError)
"""Errors that are about what is stored, and no fault of the job's input."""
LORA = "lora:"


class Outcome(Enum):
    """How a lane's turn with a render ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    YIELDED = "yielded"
    """Saved and given back, for something more urgent or because the lane closes."""
    FAILED = "failed"
    """By the job's own fault."""
    LOST = "lost"
    """By the farm's; the job pays nothing."""
    PARKED = "parked"
    """Storage cannot be used; the job waits and pays nothing."""
    OVERTAKEN = "overtaken"
    """The lease was over; another lane has it."""


@dataclass(kw_only=True)
class _Pulse:
    """How far a render is, as the thread of heartbeats sees it."""

    step: int
    progress_at: float = field(default_factory=time.monotonic)
    asked_at: float = field(default=0.0)
    turn: threading.Lock = field(default_factory=threading.Lock)
    """To ask: of two heartbeats at once the one with the later step may arrive first."""

    def beat(self, step: int | None = None) -> None:
        self.step = self.step if step is None else step
        self.progress_at = time.monotonic()


def _no_tell(name: str, value: float) -> None:
    """Nobody listens."""


@dataclass(kw_only=True)
class LaneWork:
    """One lane's work on renders of a farm."""

    lane: Lane
    renders: LeasedRenders
    objects: ObjectStore
    session: RenderSession
    should_close: Callable[[], bool] = lambda: False
    tell: Callable[[str, float], None] = _no_tell
    """Hears of step_s, snapshot_s, snapshot_bytes, fetch_s and publish_s."""
    heartbeat_s: float = HEARTBEAT_S
    orders_s: float = ORDERS_S
    snapshot_steps: int = SNAPSHOT_STEPS
    snapshot_s: float = SNAPSHOT_S
    preview_s: float = PREVIEW_S
    storage_patience_s: float = STORAGE_PATIENCE_S
    parked_s: float = PARKED_S
    pulse: _Pulse | None = field(default=None, init=False)
    """Of the render under way."""
    _snapshot_key: str | None = field(default=None, init=False)
    _preview_key: str | None = field(default=None, init=False)

    def run_one(self, wait_s: float = 0.0) -> Outcome | None:
        """Claim a render and do what can be done with it; None when there is none for `wait_s`."""
        claim = None if self.should_close() else self.renders.claim(self.lane, wait_s)
        if claim is None:
            return None
        logger.info(
            "render=%s fence=%d lane=%s from step %d", *(claim.render_id, claim.fence, claim.lane, claim.first_step)
        )
        with self._ending(claim) as ended, self._alive(claim) as pulse:
            ended.append(self._render(claim, pulse))
        logger.info("render=%s fence=%d %s", claim.render_id, claim.fence, ended[0].value)
        return ended[0]

    @property
    def is_stalled(self) -> bool:
        pulse = self.pulse
        return pulse is not None and time.monotonic() - pulse.progress_at > STALL_S

    @contextlib.contextmanager
    def _ending(self, claim: Claim) -> Generator[list[Outcome]]:
        """What went wrong inside, as the store should hear it."""
        outcome: list[Outcome] = []
        try:
            try:
                yield outcome
            except LeaseLostError:
                raise
            except (StorageError, OutputError) as error:
                logger.warning("render=%s waits for storage: %s", claim.render_id, error)
                self.renders.park(claim, error.message, self.parked_s)
                outcome[:] = [Outcome.PARKED]
            except Exception as error:
                if isinstance(error, THE_JOBS_OWN) and not isinstance(error, OF_STORAGE):
                    self.renders.failed(claim, error.code, error.message)
                    outcome[:] = [Outcome.FAILED]
                    return
                logger.exception("render=%s lane=%s", claim.render_id, claim.lane)
                reason = error.message if isinstance(error, SakugaError) else f"{type(error).__name__}: {error}"
                self.renders.lost(claim, reason)
                outcome[:] = [Outcome.LOST]
        except LeaseLostError:
            logger.warning("render=%s fence=%d was overtaken", claim.render_id, claim.fence)
            outcome[:] = [Outcome.OVERTAKEN]

    def _render(self, claim: Claim, pulse: _Pulse) -> Outcome:
        self._snapshot_key, self._preview_key = claim.snapshot_key, None
        with tempfile.TemporaryDirectory(prefix="sakuga-lane-") as name:
            scratch = Path(name)
            try:
                return self._render_in(scratch, claim, pulse)
            except MemoryLimitError:
                if not self.session.shrink():
                    raise
                logger.warning("render=%s did not fit; once more on a smaller memory plan", claim.render_id)
            return self._render_in(scratch, claim, pulse)

    def _render_in(self, scratch: Path, claim: Claim, pulse: _Pulse) -> Outcome:
        recipe = RenderRecipe.from_dict(claim.recipe)
        with self._timed("fetch_s"):
            files = self._fetch(claim, scratch)
        pulse.beat()
        at = self._begin(claim, recipe, files, scratch)
        pulse.beat(at.step)
        end = denoise(
            _Timed(self.session, self.tell),
            at,
            self._control(claim, pulse, scratch),
            snapshot=lambda at: self._save(claim, at, scratch),
        )
        if not end.is_done:
            self.renders.released(claim)
            return Outcome.YIELDED if end.decision is not Decision.CANCEL else Outcome.CANCELLED
        receipt = self.session.finish(end.state, scratch)
        pulse.beat(end.state.step)
        with self._timed("publish_s"):
            artifact = self._store(claim, scratch, receipt)
            is_wanted = self.renders.publish(claim, artifact)
        self._clean_up(claim, everything=not is_wanted)
        return Outcome.COMPLETED if is_wanted else Outcome.CANCELLED

    @contextlib.contextmanager
    def _timed(self, name: str) -> Generator[None]:
        began = time.monotonic()
        yield
        self.tell(name, time.monotonic() - began)

    def _fetch(self, claim: Claim, scratch: Path) -> InputFiles:
        """The contents that the recipe names by hash. Raises LoraError, NotFoundError or StorageError."""
        paths = {}
        for role, name in claim.inputs.items():
            paths[role] = scratch / role.replace(":", "-") / Path(name).name
            paths[role].parent.mkdir(exist_ok=True)
            self.objects.get(name, paths[role])
        loras = {role.removeprefix(LORA): path for role, path in paths.items() if role.startswith(LORA)}
        for sha256, path in loras.items():
            if sha256_of(path) != sha256:
                raise LoraError(f"the stored LoRA {sha256[:12]} is damaged; upload it again")
        return InputFiles(
            images={role: path for role, path in paths.items() if role in IMAGE_ROLES},
            videos={role: path for role, path in paths.items() if role in VIDEO_ROLES},
            loras=loras,
        )

    def _clean_up(self, claim: Claim, *, everything: bool) -> None:
        """Remove the snapshots of a render that has ended, or all that was stored for it; what stays does no harm."""
        if not everything and self._snapshot_key is None and self._preview_key is None:
            return
        try:
            for name in self.objects.names(f"{claim.tenant}/{claim.render_id}"):
                if everything or name.rpartition("/")[2].startswith((SNAPSHOT, PREVIEW)):
                    self.objects.delete(name)
        except SakugaError as error:
            logger.warning("render=%s leaves objects behind: %s", claim.render_id, error)

    def _begin(self, claim: Claim, recipe: RenderRecipe, files: InputFiles, scratch: Path) -> Progress:
        """From the last snapshot; from the start, if there is none or it has gone."""
        if self._snapshot_key is not None:
            path = scratch / "snapshot"
            try:
                self.objects.get(self._snapshot_key, path)
                return self.session.begin(recipe, files, path)
            except (StorageError, MemoryLimitError):
                raise
            except SakugaError as error:
                logger.warning("render=%s begins anew: its snapshot is of no use: %s", claim.render_id, error)
        return self.session.begin(recipe, files)

    def _control(self, claim: Claim, pulse: _Pulse, scratch: Path) -> Callable[[Progress], Decision]:
        every = SnapshotEvery(num_steps=self.snapshot_steps, min_s=self.snapshot_s)
        seen_at = time.monotonic()

        def control(at: Progress) -> Decision:
            nonlocal seen_at
            pulse.beat(at.step)
            if time.monotonic() - seen_at > self.preview_s and not at.is_done:
                self._show(claim, at, scratch)
                seen_at = time.monotonic()
            wishes = [every(at)]
            if time.monotonic() - pulse.asked_at >= self.orders_s:
                orders = self._orders(claim, pulse)
                wishes += [Decision.CANCEL] * orders.cancel + [Decision.PAUSE] * orders.yield_lane
            if self.should_close():
                wishes.append(Decision.PAUSE)
            return strongest(wishes)

        return control

    def _orders(self, claim: Claim, pulse: _Pulse) -> Orders:
        """What the farm wants; nothing while the store cannot be asked, for as long as the lease lasts."""
        pulse.asked_at = time.monotonic()
        try:
            with pulse.turn:
                return self.renders.heartbeat(claim, pulse.step)
        except LeaseLostError:
            raise
        except Exception as error:  # noqa: BLE001  # of the database or on the way to it
            logger.warning("render=%s heartbeat: %s", claim.render_id, error)
            return Orders()

    def _save(self, claim: Claim, at: Progress, scratch: Path) -> None:
        """A snapshot under a name of its own; the one before goes when the store knows this one.

        Without storage the render goes on, or waits from the snapshot before.
        """
        path = scratch / "snapshot"
        with self._timed("snapshot_s"):
            self.session.snapshot(at, path)
            key = f"{claim.passing}/{SNAPSHOT}{at.step}-{secrets.token_hex(4)}.safetensors"
            try:
                self.objects.put(key, path)
            except (StorageError, OutputError) as error:
                logger.warning("render=%s is not saved at step %d: %s", claim.render_id, at.step, error)
                return
        self.tell("snapshot_bytes", path.stat().st_size)
        self._snapshot_key = key
        before = self.renders.saved(claim, key, at.step)
        if before not in (None, key):
            try:
                self.objects.delete(before)
            except (StorageError, OutputError) as error:
                logger.warning("render=%s leaves a snapshot behind: %s", claim.render_id, error)

    def _show(self, claim: Claim, at: Progress, scratch: Path) -> None:
        """A picture of how far the render is, for those who wait; without one nothing is lost."""
        path, key = scratch / "preview.webp", f"{claim.passing}/{PREVIEW}{at.step}.webp"
        try:
            if not self.session.preview(at, path):
                return
            self.objects.put(key, path)
            if self._preview_key is not None:
                self.objects.delete(self._preview_key)
        except SakugaError as error:
            logger.warning("render=%s has no preview at step %d: %s", claim.render_id, at.step, error)
        self._preview_key = key

    def _store(self, claim: Claim, scratch: Path, receipt: Mapping[str, object]) -> Artifact:
        """All files of the video, then the manifest; tried for a while, since to render again takes longer."""
        deadline, pause_s = time.monotonic() + self.storage_patience_s, 1.0
        while True:
            try:
                return self._store_once(claim, scratch, receipt)
            except (StorageError, OutputError) as error:
                if time.monotonic() + pause_s > deadline:
                    raise
                logger.warning("render=%s keeps its video until storage is back: %s", claim.render_id, error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 30.0)

    def _store_once(self, claim: Claim, scratch: Path, receipt: Mapping[str, object]) -> Artifact:
        prefix = f"{claim.prefix}/video"
        stored = [self.objects.put(f"{prefix}/{path.name}", path) for path in sorted(scratch.glob("video.*"))]
        movie = next(each for each in stored if each.name.endswith(".mp4"))
        manifest = scratch / MANIFEST
        manifest.write_text(json.dumps({each.name: each.sha256 for each in stored}))
        self.objects.put(f"{prefix}/{MANIFEST}", manifest)
        return Artifact(prefix=prefix, sha256=movie.sha256, num_bytes=movie.num_bytes, receipt=receipt)

    @contextlib.contextmanager
    def _alive(self, claim: Claim) -> Generator[_Pulse]:
        """Inside, a thread renews the lease through stages that have no steps."""
        pulse, over = _Pulse(step=claim.first_step), threading.Event()

        def beats() -> None:
            while not over.wait(self.heartbeat_s):
                if self.is_stalled:
                    logger.error("render=%s makes no progress; its lease is left to end", claim.render_id)
                    continue
                try:
                    self._orders(claim, pulse)
                except LeaseLostError:
                    return  # the next step hears of it

        thread = threading.Thread(target=beats, name=f"heartbeat-{claim.render_id}", daemon=True)
        self.pulse = pulse
        thread.start()
        try:
            yield pulse
        finally:
            over.set()
            thread.join()
            self.pulse = None


@dataclass(frozen=True)
class _Timed:
    """A session whose steps are heard of."""

    session: RenderSession
    tell: Callable[[str, float], None]

    def step(self, at: Progress, /) -> Progress:
        began = time.monotonic()
        after = self.session.step(at)
        self.tell("step_s", time.monotonic() - began)
        return after
