"""What a lane does with one render: claim it, go on from its last snapshot, step, save, publish under the fence.

It knows the engine, the job store and storage, and nothing of Ray: a Serve replica calls it, a test does too. Between
two steps it hears what the farm wants (cancel, make room) and whether it shall close; a thread keeps the lease alive
through the stages that are longer than a lease, for as long as the render makes progress.

Run: pytest tests/unit/test_lane.py
"""

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from sakuga.engine.artifacts import write_render
from sakuga.engine.loop import Decision, SnapshotEvery, denoise, strongest
from sakuga.engine.protocol import RenderEngine
from sakuga.engine.state import RenderInputs, RenderState
from sakuga.errors import (
    ConflictError,
    InputError,
    LeaseLostError,
    LoraError,
    NotFoundError,
    NumericsError,
    SakugaError,
)
from sakuga.jobstore import Artifact, Claim, Lane, LeasedRenders, Orders
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""A third of a lease."""
STALL_S = 600.0
"""Without a step or a new stage for so long, the lease is left to end: something hangs."""
SNAPSHOT_STEPS = 5
SNAPSHOT = "snapshot-"
MANIFEST = "manifest.json"
"""Written last: what is in storage without it belongs to nobody."""
THE_JOBS_OWN = (InputError, LoraError, NumericsError)
"""Errors that another lane would meet too."""
OF_STORAGE = (NotFoundError, ConflictError)
"""Errors that are about what is stored, and no fault of the job's input."""


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
    OVERTAKEN = "overtaken"
    """The lease was over; another lane has it."""


@dataclass(kw_only=True)
class _Pulse:
    """How far a render is, as the thread of heartbeats sees it."""

    step: int
    progress_at: float = field(default_factory=time.monotonic)

    def beat(self, step: int | None = None) -> None:
        self.step = self.step if step is None else step
        self.progress_at = time.monotonic()


@dataclass(kw_only=True)
class LaneWork:
    """One lane's work on renders of a farm."""

    lane: Lane
    renders: LeasedRenders
    objects: ObjectStore
    engine_for: Callable[[RenderRecipe], RenderEngine]
    """Loads what the recipe asks for, or gives what is loaded."""
    inputs_for: Callable[[RenderRecipe], RenderInputs]
    """Images, videos and LoRAs that the recipe names by hash."""
    should_close: Callable[[], bool] = lambda: False
    heartbeat_s: float = HEARTBEAT_S
    snapshot_steps: int = SNAPSHOT_STEPS

    def run_one(self) -> Outcome | None:
        """Claim a render and do what can be done with it; None when there is none."""
        claim = self.renders.claim(self.lane)
        if claim is None:
            return None
        with self._ending(claim) as ended, self._alive(claim) as pulse:
            ended.append(self._render(claim, pulse))
        return ended[0]

    @contextlib.contextmanager
    def _ending(self, claim: Claim) -> Generator[list[Outcome]]:
        """What went wrong inside, as the store should hear it."""
        outcome: list[Outcome] = []
        try:
            try:
                yield outcome
            except LeaseLostError:
                raise
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
        recipe = RenderRecipe.from_dict(claim.recipe)
        engine, inputs = self.engine_for(recipe), self.inputs_for(recipe)
        pulse.beat()
        with tempfile.TemporaryDirectory(prefix="sakuga-lane-") as name:
            scratch = Path(name)
            state = self._begin(claim, recipe, engine, inputs, scratch)
            pulse.beat(state.step)
            end = denoise(
                engine,
                state,
                self._control(claim, pulse),
                snapshot=lambda state: self._save(claim, engine, state, scratch),
            )
            if not end.is_done:
                self.renders.released(claim)
                if end.decision is not Decision.CANCEL:
                    return Outcome.YIELDED
                return Outcome.CANCELLED
            video = engine.finish(end.state)
            pulse.beat(end.state.step)
            receipt = engine.receipt(recipe, video)
            write_render(video, receipt, scratch, "video")
            is_wanted = self.renders.publish(claim, self._store(claim, scratch, receipt))
        self._clean_up(claim, everything=not is_wanted)
        return Outcome.COMPLETED if is_wanted else Outcome.CANCELLED

    def _clean_up(self, claim: Claim, *, everything: bool) -> None:
        """Remove the snapshots of a render that has ended, or all that was stored for it; what stays does no harm."""
        try:
            for name in self.objects.names(f"{claim.tenant}/{claim.render_id}"):
                if everything or name.rpartition("/")[2].startswith(SNAPSHOT):
                    self.objects.delete(name)
        except SakugaError as error:
            logger.warning("render=%s leaves objects behind: %s", claim.render_id, error)

    def _begin(
        self, claim: Claim, recipe: RenderRecipe, engine: RenderEngine, inputs: RenderInputs, scratch: Path
    ) -> RenderState:
        """From the last snapshot; from the start, if there is none or it has gone."""
        if claim.snapshot_key is not None:
            path = scratch / "snapshot.safetensors"
            try:
                self.objects.get(claim.snapshot_key, path)
                engine.add_loras(inputs.lora_paths)
                return engine.restore(path, recipe)
            except SakugaError as error:
                logger.warning("render=%s begins anew: its snapshot is of no use: %s", claim.render_id, error)
        return engine.start(recipe, inputs)

    def _control(self, claim: Claim, pulse: _Pulse) -> Callable[[RenderState], Decision]:
        every = SnapshotEvery(num_steps=self.snapshot_steps)

        def control(state: RenderState) -> Decision:
            pulse.beat(state.step)
            orders = self._orders(claim, state.step)
            wishes = [every(state)]
            if orders.cancel:
                wishes.append(Decision.CANCEL)
            if orders.yield_lane or self.should_close():
                wishes.append(Decision.PAUSE)
            return strongest(wishes)

        return control

    def _orders(self, claim: Claim, step: int) -> Orders:
        """What the farm wants; nothing while the store cannot be asked, for as long as the lease lasts."""
        try:
            return self.renders.heartbeat(claim, step)
        except LeaseLostError:
            raise
        except Exception as error:  # noqa: BLE001  # of the database or on the way to it
            logger.warning("render=%s heartbeat: %s", claim.render_id, error)
            return Orders()

    def _save(self, claim: Claim, engine: RenderEngine, state: RenderState, scratch: Path) -> None:
        """A snapshot under a name of its own; the one before goes when the store knows this one."""
        path = scratch / "snapshot.safetensors"
        engine.snapshot(state, path)
        key = f"{prefix_of(claim)}/{SNAPSHOT}{state.step}.safetensors"
        self.objects.put(key, path)
        before = self.renders.saved(claim, key, state.step)
        if before not in (None, key):
            self.objects.delete(before)

    def _store(self, claim: Claim, scratch: Path, receipt: Mapping[str, object]) -> Artifact:
        """All files of the video, then the manifest."""
        prefix = f"{prefix_of(claim)}/video"
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
                if time.monotonic() - pulse.progress_at > STALL_S:
                    logger.error("render=%s makes no progress; its lease is left to end", claim.render_id)
                    continue
                try:
                    self._orders(claim, pulse.step)
                except LeaseLostError:
                    return  # the next step hears of it

        thread = threading.Thread(target=beats, name=f"heartbeat-{claim.render_id}", daemon=True)
        thread.start()
        try:
            yield pulse
        finally:
            over.set()
            thread.join()


def prefix_of(claim: Claim) -> str:
    """Of everything that this attempt writes."""
    return f"{claim.tenant}/{claim.render_id}/{claim.fence}"
