"""A render that is driven from elsewhere: begun, stepped, saved and finished by paths and plain values, one at a time.

What a lane needs of whatever renders for it: an engine in the same process (`driven.EngineSession`), ranks in others
(`sakuga.farm.ranks`) or nothing but sleep (`simulated.SimEngine`). Imports no PyTorch.

Run: pytest tests/unit/test_session.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sakuga.recipe import RenderRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A `RenderState` as seen from outside."""

    step: int
    num_steps: int
    is_light: bool = True

    @property
    def is_done(self) -> bool:
        return self.step == self.num_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFiles:
    """The contents that a recipe names by hash, as local files."""

    images: Mapping[str, Path] = field(default_factory=dict)
    """By role."""
    videos: Mapping[str, Path] = field(default_factory=dict)
    loras: Mapping[str, Path] = field(default_factory=dict)
    """By sha256; without those that come with the model."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return (*self.images.values(), *self.videos.values(), *self.loras.values())


class RenderSession(Protocol):
    """One render at a time. Each call names where the render stands; one that is elsewhere refuses."""

    def begin(self, recipe: RenderRecipe, files: InputFiles, snapshot: Path | None = None) -> Progress:
        """Encode, or go on from a snapshot. What was under way before is forgotten."""
        ...

    def step(self, at: Progress, /) -> Progress:
        """One denoise step."""
        ...

    def snapshot(self, at: Progress, path: Path) -> None:
        """Save the render between two steps."""
        ...

    def preview(self, at: Progress, path: Path) -> bool:
        """Write what the video will about look like as a WebP; False where that cannot be said."""
        ...

    def finish(self, at: Progress, folder: Path) -> Mapping[str, object]:
        """Decode, write the files `video.*` into the folder and give the receipt."""
        ...

    def shrink(self) -> bool:
        """After a render did not fit: load the model anew with more of it outside the device; False if all is."""
        ...
