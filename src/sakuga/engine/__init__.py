"""The render engine: recipe and inputs in, video out, one denoise step at a time.

`resolve` makes recipes of requests, `LocalEngine` renders them, `write_render` writes the files. PyTorch, no Ray.
"""

from sakuga.engine.artifacts import Artifacts, artifact_paths, write_render
from sakuga.engine.local import LocalEngine
from sakuga.engine.protocol import RenderEngine
from sakuga.engine.resolve import resolve
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
    "resolve",
    "write_render",
]
