"""Weights on a CPU: one copy for all processes of a node, with the values of the file.

Run: pytest tests/dist/test_mapped.py
"""

from pathlib import Path

import pytest
import torch
from diffsynth.core.loader import load_state_dict

import rank_work
from mapped_model import load_large, save_large

pytestmark = pytest.mark.dist

SUFFIXES = [".safetensors", ".pth"]


@pytest.fixture(scope="module", params=SUFFIXES)
def saved(request, tmp_path_factory):
    """(folder, suffix, bytes of the DiT's file)."""
    folder = tmp_path_factory.mktemp("large")
    return folder, request.param, save_large(folder, request.param)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells shared from private pages")
def test_host_memory_does_not_grow_with_the_ranks(saved, world):
    folder, suffix, file_bytes = saved
    assert file_bytes > 100e6
    grown = world(4).run(rank_work.load_mapped, str(folder), suffix)
    print(f"a file of {file_bytes} bytes, on each of 4 ranks {grown}")
    for rank in grown:
        assert rank["Anonymous"] < 0.25 * file_bytes
    assert sum(rank["Pss"] for rank in grown) < (1 + 3 * 0.25) * file_bytes


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_values_are_those_that_diffsynths_own_loader_reads(saved, precision, dtype):
    folder, suffix, _ = saved
    loaded = load_large(folder, suffix, precision).pipe.dit.state_dict()
    expected = load_state_dict(str(folder / f"dit{suffix}"), torch_dtype=dtype)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_a_change_in_memory_leaves_the_file_alone(saved):
    folder, suffix, _ = saved
    before = (folder / f"vae{suffix}").read_bytes()
    for parameter in load_large(folder, suffix).pipe.vae.parameters():
        parameter.data.add_(1)
    assert (folder / f"vae{suffix}").read_bytes() == before
