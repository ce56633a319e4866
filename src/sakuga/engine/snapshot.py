"""A render between two steps as one safetensors file, which says itself what it is.

The header holds a format version, the recipe and the counters; the tensors are latents, sigmas and conditioning. A
14B render at 720p is some tens of megabytes. Weights and LoRAs are named by hash, not stored.
Run: pytest tests/unit/test_engine_local.py
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sakuga.engine.state import Conditioning, RenderState
from sakuga.errors import RecipeError, WeightsError
from sakuga.media import atomic_file
from sakuga.recipe import RenderRecipe
from sakuga.wan.weights import check_safetensors

FORMAT = "sakuga-render-state"
VERSION = 1
PREFIX = "conditioning."


def save_state(state: RenderState, path: Path) -> None:
    """Write the state, whole or not at all. Raises OutputError or DiskFullError."""
    tensors = {"latents_BCTHW": state.latents_BCTHW, "sigmas": state.sigmas}
    for field in dataclasses.fields(Conditioning):
        value = getattr(state.conditioning, field.name)
        if value is not None:
            tensors[PREFIX + field.name] = value
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "recipe": state.recipe.canonical_json(),
        "counters": json.dumps(
            {
                "step": state.step,
                "num_reference_frames": state.num_reference_frames,
                "encode_s": state.encode_s,
                "step_s": state.step_s,
                "notes": state.notes,
            }
        ),
    }
    contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary, metadata=header)


def load_state(path: Path, device: torch.device) -> RenderState:
    """Read a state back onto a device. Raises WeightsError when the file is damaged, RecipeError for another format."""
    check_safetensors(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}; start the render again") from error
    if header.get("format") != FORMAT or header.get("version") != str(VERSION):
        raise RecipeError(f"{path} is no render state of version {VERSION}; start the render again")
    counters = json.loads(header["counters"])
    conditioning = {
        name.removeprefix(PREFIX): tensor.to(device) for name, tensor in tensors.items() if name.startswith(PREFIX)
    }
    return RenderState(
        recipe=RenderRecipe.from_dict(json.loads(header["recipe"])),
        conditioning=Conditioning(**conditioning),
        latents_BCTHW=tensors["latents_BCTHW"].to(device),
        sigmas=tensors["sigmas"],
        step=counters["step"],
        num_reference_frames=counters["num_reference_frames"],
        encode_s=counters["encode_s"],
        step_s=tuple(counters["step_s"]),
        notes=tuple(counters["notes"]),
    )
