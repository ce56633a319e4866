"""What every engine can do, however many processes it runs in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sakuga.engine.state import RenderInputs, RenderState, Video
from sakuga.recipe import RenderRecipe


class RenderEngine(Protocol):
    """Start, step until the state is done, finish; between two steps the state is all there is."""

    def start(self, recipe: RenderRecipe, inputs: RenderInputs) -> RenderState:
        """Encode."""
        ...

    def step(self, state: RenderState) -> RenderState:
        """One denoise step."""
        ...

    def finish(self, state: RenderState) -> Video:
        """Decode."""
        ...

    def snapshot(self, state: RenderState, path: Path) -> None:
        """Save a state between two steps as one self-describing safetensors file."""
        ...

    def restore(self, path: Path, recipe: RenderRecipe | None = None) -> RenderState:
        """The state of a snapshot, of `recipe` if one is given; going on from it gives the same bits."""
        ...

    def add_loras(self, paths: Sequence[Path]) -> None:
        """Read LoRAs that recipes will name, as a restored render needs them."""
        ...

    def receipt(self, recipe: RenderRecipe, video: Video) -> dict[str, object]:
        """What made this video, as plain values for JSON."""
        ...
