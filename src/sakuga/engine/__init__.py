"""The render engine: recipe and inputs in, video out, one denoise step at a time.

`resolve.resolve` makes recipes of requests, `LocalEngine` renders them, `write_render` writes files. PyTorch, no Ray.
Names are imported when they are first asked for: whoever only drives a render in other processes needs no PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sakuga.engine.artifacts import Artifacts, artifact_paths, write_render
    from sakuga.engine.local import LocalEngine
    from sakuga.engine.protocol import RenderEngine
    from sakuga.engine.state import Conditioning, OnEvent, RenderInputs, RenderState, StepEvent, Video

__all__ = [
    "Artifacts",
    "Conditioning",
    "LocalEngine",
    "OnEvent",
    "RenderEngine",
    "RenderInputs",
    "RenderState",
    "StepEvent",
    "Video",
    "artifact_paths",
    "write_render",
]

_HOME = {"LocalEngine": "local", "RenderEngine": "protocol"}
_HOME |= dict.fromkeys(("Artifacts", "artifact_paths", "write_render"), "artifacts")
_HOME |= dict.fromkeys(("Conditioning", "OnEvent", "RenderInputs", "RenderState", "StepEvent", "Video"), "state")


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
