"""Everything that a run needs to go on, in a folder that is complete or absent.

    config.json             the run's settings
    state.json              steps done, what the data was, the last figures
    trained.safetensors     what is trained, fp32, whole on any number of workers
    ema.safetensors         its running mean, where there is one
    optimizer.pt            the optimizers' state (tensors only)
    lora.safetensors        the LoRA as it is used: lora_high and lora_low where there are two experts
    model.safetensors       of a full fine-tuning, in bf16: model_low of the second expert

Run: pytest tests/unit/test_training_checkpoint.py
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sakuga.errors import TrainError, shown
from sakuga.media.files import output_error, sync_file, write_json_atomic
from sakuga.training.config import TrainConfig

STATE_NAME = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands."""

    step: int = 0
    """Steps done, and so the number of the next one."""
    data_sha256: str = ""
    weights_sha256: str = ""
    """Of the base."""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """What the loop has in memory, on the CPU and whole."""

    trained: Mapping[str, torch.Tensor]
    ema: Mapping[str, torch.Tensor] | None
    optimizers: list[dict]


def write_checkpoint(folder: Path, config: TrainConfig, state: RunState, tensors: Tensors) -> None:
    """The state files, into a folder that nobody else looks at yet; `publish` gives it its name.

    Raises OutputError or DiskFullError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors.trained), folder / "trained.safetensors")
        if tensors.ema is not None:
            save_file(dict(tensors.ema), folder / "ema.safetensors")
        torch.save(tensors.optimizers, folder / "optimizer.pt")
    except (OSError, SafetensorError) as error:
        raise output_error(folder, error if isinstance(error, OSError) else OSError(str(error))) from error
    write_json_atomic(folder / "config.json", config.to_dict())
    fields = {"step": state.step, "data_sha256": state.data_sha256, "weights_sha256": state.weights_sha256}
    write_json_atomic(folder / STATE_NAME, {**fields, "metrics": dict(state.metrics)})


def publish(staged: Path, folder: Path) -> Path:
    """Give a written folder its name: it is there whole or not at all."""
    try:
        for path in staged.iterdir():
            sync_file(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(staged, folder)
        sync_file(folder.parent)
    except OSError as error:
        raise output_error(folder, error) from error
    return folder


def read_state(folder: Path, config: TrainConfig) -> RunState:
    """Where the run of a checkpoint stands. Raises TrainError unless a run with these settings can go on from it."""
    try:
        saved = TrainConfig.from_dict(json.loads((folder / "config.json").read_text()))
        saved.check_same(config)
        return RunState(**json.loads((folder / STATE_NAME).read_text()))
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, TrainError):
            raise
        raise TrainError(f"checkpoint {shown(folder)} cannot be read ({error}); go on from an earlier one") from error


def check_same_data(state: RunState, *, data_sha256: str, weights_sha256: str) -> None:
    """Raises TrainError when a run would go on with another data set or another base."""
    for what, before, now in (
        ("data set", state.data_sha256, data_sha256),
        ("base model", state.weights_sha256, weights_sha256),
    ):
        if before != now:
            raise TrainError(
                f"the run was begun with another {what} ({before[:12]}, now {now[:12]}); "
                f"give it the old one, or the run another name"
            )


def read_tensors(folder: Path) -> Tensors:
    """Raises TrainError when a file is missing or damaged."""
    try:
        ema = folder / "ema.safetensors"
        return Tensors(
            trained=load_file(folder / "trained.safetensors"),
            ema=load_file(ema) if ema.exists() else None,
            # Tensors only: a checkpoint may come from elsewhere, and a pickle may run what it likes.
            optimizers=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
        )
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise TrainError(f"checkpoint {shown(folder)} is damaged ({error}); go on from an earlier one") from error
