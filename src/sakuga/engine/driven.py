"""An engine that is driven from elsewhere: `RenderSession` for whatever can render in this process.

Run: pytest tests/unit/test_session.py
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sakuga.engine.artifacts import write_render
from sakuga.engine.local import LocalEngine
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.protocol import RenderEngine
from sakuga.engine.session import InputFiles, Progress
from sakuga.engine.state import RenderInputs, RenderState
from sakuga.errors import ImageError, LoraError, SakugaError, VideoError
from sakuga.media import image_sha256, load_image, read_video, thumbnail_webp, video_sha256
from sakuga.recipe import ImageRef, RenderRecipe, VideoRef

NAME = "video"

Content = TypeVar("Content")
Load = Callable[[str, ExecutionPlan], RenderEngine]
"""An engine for a precision under a plan."""


class EngineSession:
    """Loads an engine when the first render needs it, and another one when a render asks for another precision."""

    def __init__(
        self,
        load: Load,
        execution: ExecutionPlan | None = None,
        *,
        loras: Mapping[str, Path] | None = None,
        writes: bool = True,
        denoises: bool = True,
    ) -> None:
        """`loras` come with the model, by sha256. Of several ranks only one `writes` the video's files.

        An engine that only encodes or decodes has no use for LoRAs.
        """
        self._load, self.execution, self._writes = load, execution or ExecutionPlan(), writes
        self._loras, self._denoises = loras or {}, denoises
        self._engine: RenderEngine | None = None
        self._precision: str | None = None
        self._state: RenderState | None = None

    def warm_up(self, precision: str) -> None:
        """Load, so that the first render does not wait for it."""
        self._engine_for(precision)

    def begin(self, recipe: RenderRecipe, files: InputFiles, snapshot: Path | None = None) -> Progress:
        self._state = None  # its memory is needed
        engine = self._engine_for(recipe.precision)
        loras = self._lora_paths(recipe, files) if self._denoises else ()
        if snapshot is None:
            inputs = RenderInputs(
                images={ref.role: _image(ref, files.images[ref.role]) for ref in recipe.images},
                videos={ref.role: _video(ref, files.videos[ref.role]) for ref in recipe.videos},
                lora_paths=loras,
            )
            self._state = engine.start(recipe, inputs)
        else:
            engine.add_loras(loras)
            self._state = engine.restore(snapshot, recipe)
        return self._progress(self._state)

    def step(self, at: Progress, /) -> Progress:
        state = self._at(at)
        self._state = self._engine_for(None).step(state)
        return self._progress(self._state)

    def snapshot(self, at: Progress, path: Path) -> None:
        state = self._at(at)
        self._engine_for(None).snapshot(state, path)

    def preview(self, at: Progress, path: Path) -> bool:
        state, engine = self._at(at), self._engine_for(None)
        if not isinstance(engine, LocalEngine) or "decode" not in engine.model.stages:
            return False
        thumbnail_webp(path, engine.preview(state)[None])
        return True

    def finish(self, at: Progress, folder: Path) -> Mapping[str, object]:
        state, engine = self._at(at), self._engine_for(None)
        video = engine.finish(state)
        receipt = engine.receipt(state.recipe, video)
        self._state = None
        if self._writes:
            write_render(video, receipt, folder, NAME)
        return receipt

    def shrink(self) -> bool:
        memory = self.execution.memory.smaller
        if memory is None:
            return False
        self.execution = replace(self.execution, memory=memory, compile=False)
        self._engine = self._state = None
        return True

    def _lora_paths(self, recipe: RenderRecipe, files: InputFiles) -> tuple[Path, ...]:
        at_hand = {**self._loras, **files.loras}
        missing = [ref.sha256[:12] for ref in recipe.loras if ref.sha256 not in at_hand]
        if missing:
            raise LoraError(f"LoRA {', '.join(missing)} is not there; upload it and submit again")
        return tuple(at_hand[ref.sha256] for ref in recipe.loras)

    def _engine_for(self, precision: str | None) -> RenderEngine:
        """The engine; with a precision, loaded in it."""
        if self._engine is None or precision not in (None, self._precision):
            self._engine = None  # first: two large models do not fit beside each other
            self._precision = precision or self._precision
            assert self._precision is not None, "a render is begun first"
            self._engine = self._load(self._precision, self.execution)
        return self._engine

    def _at(self, at: Progress) -> RenderState:
        if self._state is None or self._state.step != at.step:
            there = "nothing is under way" if self._state is None else f"it is at step {self._state.step}"
            raise SakugaError(f"the render was to go on from step {at.step}, but {there}; begin it again")
        return self._state

    @staticmethod
    def _progress(state: RenderState) -> Progress:
        return Progress(step=state.step, num_steps=state.num_steps, is_light=state.is_light)


def _image(ref: ImageRef, path: Path):
    image = load_image(path)
    if image_sha256(image) != ref.sha256:
        raise ImageError(f"the stored {ref.role} is not the one of the recipe; submit it again")
    return image


def _video(ref: VideoRef, path: Path):
    video = read_video(path)
    if video_sha256(video) != ref.sha256:
        raise VideoError(f"the stored {ref.role} is not the one of the recipe; submit it again")
    return video
