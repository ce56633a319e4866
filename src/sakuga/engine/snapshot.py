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
from sakuga.errors import RecipeError, WeightsError, shown
from sakuga.media import atomic_file
from sakuga.recipe import RenderRecipe
from sakuga.wan.caching import BranchCache
from sakuga.wan.weights import check_safetensors

FORMAT = "sakuga-render-state"
VERSION = 3
PREFIX = "conditioning."
CACHE_PREFIX = "cache/"


def save_state(state: RenderState, path: Path) -> None:
    """Write the state, whole or not at all; without its caches where the next step begins them anew.

    Raises OutputError or DiskFullError.
    """
    if state.refreshes_next:
        state = state.without_caches()
    tensors = {"latents_BCTHW": state.latents_BCTHW, "sigmas": state.sigmas}
    for field in dataclasses.fields(Conditioning):
        value = getattr(state.conditioning, field.name)
        if value is not None:
            tensors[PREFIX + field.name] = value
    for branch, cache in state.caches.items():
        tensors |= {f"{CACHE_PREFIX}{branch}/{name}": tensor for name, tensor in cache.tensors.items()}
    aliases = _without_aliases(tensors)
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "recipe": state.recipe.canonical_json(),
        "aliases": json.dumps(aliases),
        "counters": json.dumps(
            {
                "step": state.step,
                "num_blocks_run": state.num_blocks_run,
                "caches": {branch: dict(cache.numbers) for branch, cache in state.caches.items()},
                "attention": state.attention,
                "plan": state.plan,
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


def _without_aliases(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Take out tensors that are another one under a second name; gives that other name for each.

    Both branches of a step cache remember the same latents, and safetensors refuses memory that is shared.
    """
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    aliases = {}
    for name, tensor in list(tensors.items()):
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if first.setdefault(place, name) != name:
            aliases[name] = first[place]
            del tensors[name]
    return aliases


def load_state(path: Path, device: torch.device) -> RenderState:
    """Read a state back onto a device. Raises WeightsError when the file is damaged, RecipeError for another format."""
    check_safetensors(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            # Cloned: the file's bytes lie at any address, and the kernels' rounding depends on a tensor's alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}; start the render again") from error
    if header.get("format") != FORMAT:
        raise RecipeError(f"{path} is no render state; start the render again")
    if header.get("version") != str(VERSION):
        raise RecipeError(
            f"{path} is a render state of version {shown(header.get('version'))}, this program writes {VERSION}; "
            "go on with the program that wrote it, or start the render again"
        )
    try:
        return _state(header, tensors, device)
    except (KeyError, ValueError, TypeError) as error:  # a header that somebody edited; RecipeError is a ValueError
        if isinstance(error, RecipeError):
            raise
        raise WeightsError(f"{path} is damaged: its header lacks or garbles {error}; start the render again") from error


def _state(header: dict[str, str], tensors: dict[str, torch.Tensor], device: torch.device) -> RenderState:
    tensors |= {name: tensors[stored] for name, stored in json.loads(header["aliases"]).items()}
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
        caches={
            branch: BranchCache(tensors=_cached(tensors, branch, device), numbers=numbers)
            for branch, numbers in counters["caches"].items()
        },
        num_blocks_run=counters["num_blocks_run"],
        attention=counters["attention"],
        plan=counters["plan"],
        num_reference_frames=counters["num_reference_frames"],
        encode_s=counters["encode_s"],
        step_s=tuple(counters["step_s"]),
        notes=tuple(counters["notes"]),
    )


def _cached(tensors: dict[str, torch.Tensor], branch: str, device: torch.device) -> dict[str, torch.Tensor]:
    prefix = f"{CACHE_PREFIX}{branch}/"
    return {name.removeprefix(prefix): value.to(device) for name, value in tensors.items() if name.startswith(prefix)}
