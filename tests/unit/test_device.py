"""Devices: a wrong name or a GPU that is not there is its own error, before any weights are looked at."""

from pathlib import Path

import pytest
import torch

from sakuga.engine import LocalEngine
from sakuga.errors import DeviceError, MemoryLimitError, WeightsError
from sakuga.wan.device import check_device


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize("name", ["tpu", "cpu:3", "cuda:", "cuda:-1", "cuda:x", "CUDA", "", "cuda\n", "mps\x1b[31m"])
def test_unknown_names(name, gpus):
    gpus(8)
    with pytest.raises(DeviceError, match=r"is unknown; (write cpu, cuda or cuda:N|did you mean)") as caught:
        check_device(name)
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_gpu_that_is_not_there(gpus):
    gpus(0)
    with pytest.raises(DeviceError, match="sees no CUDA device; take cpu"):
        check_device("cuda")
    gpus(2)
    with pytest.raises(DeviceError, match="this process sees 2, counted from cuda:0"):
        check_device("cuda:2")


def test_devices_that_are_there(gpus):
    gpus(0)
    assert check_device("cpu") == torch.device("cpu")
    gpus(2)
    assert check_device("cuda") == torch.device("cuda")
    assert check_device("cuda:1") == torch.device("cuda", 1)


def test_an_engine_checks_its_device_before_its_weights(gpus, tmp_path):
    gpus(0)
    with pytest.raises(DeviceError, match="sees no CUDA device"):
        LocalEngine.load("wan-mini", tmp_path, device="cuda")
    with pytest.raises(WeightsError, match="not complete"):
        LocalEngine.load("wan-mini", tmp_path, device="cpu")


def test_a_full_gpu_is_no_damaged_weights(monkeypatch):
    """PyTorch's out-of-memory error is a RuntimeError, as a wrong shape is: the two must not be confused."""
    from diffsynth.pipelines.wan_video import WanVideoPipeline

    def full(**arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(WanVideoPipeline, "from_pretrained", full)
    with pytest.raises(MemoryLimitError, match="wan-mini does not fit into the memory of cpu; end what else") as caught:
        LocalEngine.load("wan-mini")
    assert caught.value.code == "E_MEMORY"


def test_a_render_that_does_not_fit_says_its_size(monkeypatch):
    from sakuga.engine import local
    from sakuga.engine.resolve import resolve
    from sakuga.recipe import parse_request

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    engine = LocalEngine.load("wan-mini")
    recipe, inputs, _ = resolve(parse_request({"prompt": "x", "seed": 1, "num_frames": 5}), engine.card, Path())
    monkeypatch.setattr(local, "encode", full)
    with pytest.raises(MemoryLimitError, match="a render of 128x128 and 5 frames does not fit"):
        engine.start(recipe, inputs)


def test_a_container_has_what_it_is_allowed(tmp_path, monkeypatch):
    from sakuga.wan import device

    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CGROUP_LIMITS", (limit, tmp_path / "absent"))
    limit.write_text("max\n")
    machine = device.memory_bytes(torch.device("cpu"))
    limit.write_text("1000000000\n")
    assert device.memory_bytes(torch.device("cpu")) == 1_000_000_000 < machine
