"""Devices by name: `cpu`, `cuda` and `cuda:N`, checked before anything is loaded onto them.

Left to PyTorch, a device that is not there is found in the middle of loading and reads like damaged weights.
Run: pytest tests/unit/test_device.py
"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from sakuga.errors import DeviceError, MemoryLimitError, did_you_mean, shown

KINDS = ("cpu", "cuda")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of a container, under versions 2 and 1; "max" means none."""
NAME = re.compile(r"cpu|cuda(?::(?P<index>\d{1,4}))?")


def check_device(name: str) -> torch.device:
    """The device of that name. Raises DeviceError when the name is unknown or this process sees no such device."""
    match = NAME.fullmatch(name)
    if match is None:
        hint = did_you_mean(name, KINDS) or "; write cpu, cuda or cuda:N"
        raise DeviceError(f"device {shown(name)} is unknown{hint}")
    if name == "cpu":
        return torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise DeviceError(
            f"device {shown(name)} is not here: PyTorch {torch.__version__} sees no CUDA device; "
            "take cpu, or see `sakuga doctor` for what is missing"
        )
    if int(match["index"] or 0) >= count:
        raise DeviceError(
            f"device {shown(name)} is not here: this process sees {count}, counted from cuda:0 "
            "(a Ray worker sees its own GPU as cuda:0); take cuda"
        )
    return torch.device(name)


def memory_bytes(device: torch.device) -> int:
    """All of the device's memory; for a CPU that of the machine, or what its container is allowed."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = [path.read_text().strip() for path in CGROUP_LIMITS if path.is_file()]
    return min([machine, *(int(text) for text in allowed if text.isdigit())])


@contextmanager
def memory_of(device: torch.device, what: str, cure: str) -> Generator[None]:
    """Inside: running out of device memory is a MemoryLimitError that says what did not fit and what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the next render may need it in other pieces
        raise MemoryLimitError(f"{what} does not fit into the memory of {device}; {cure}") from error
