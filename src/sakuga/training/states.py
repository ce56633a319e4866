"""States of a module and its optimizers, whole on the CPU, whether its weights are spread over workers or not.

Run: pytest tests/unit/test_training_checkpoint.py tests/dist/test_training_world.py
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch.distributed.checkpoint import state_dict as dcp

from sakuga.errors import TrainError

GATHERED = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
SCATTERED = dcp.StateDictOptions(full_state_dict=True, strict=False)


def whole_state(module: torch.nn.Module, wanted: Container[str] | None, *, sharded: bool) -> dict[str, torch.Tensor]:
    """Copies of the wanted parameters (None: all parameters and buffers); empty on all workers but the first when
    they are spread, as PyTorch gathers them there.
    """
    found = dcp.get_model_state_dict(module, options=GATHERED) if sharded else module.state_dict()
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and (wanted is None or name in wanted)
    }


def load_whole_state(module: torch.nn.Module, values: Mapping[str, torch.Tensor], *, sharded: bool) -> None:
    """Put parameters in, by name; others stay as they are."""
    if sharded:
        dcp.set_model_state_dict(module, dict(values), options=SCATTERED)
        return
    with torch.no_grad():
        parameters = dict(module.named_parameters())
        for name, value in values.items():
            parameters[name].copy_(value)


def optimizer_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer, *, sharded: bool) -> dict:
    """Of one world size or any other, as long as both are sharded or both are not."""
    if not sharded:
        return optimizer.state_dict()
    return dict(dcp.get_optimizer_state_dict(module, optimizer, options=GATHERED))


def load_optimizer_state(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict, *, sharded: bool
) -> None:
    """Raises TrainError for the state of the other kind."""
    by_name = any(isinstance(key, str) for key in saved["state"])
    if sharded != by_name:  # as FSDP gathers it
        raise TrainError("the run was begun with sharded weights or without, and goes on only in the same way")
    if sharded:
        dcp.set_optimizer_state_dict(module, optimizer, saved, options=SCATTERED)
    else:
        optimizer.load_state_dict(saved)
