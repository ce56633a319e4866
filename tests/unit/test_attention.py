"""Attention is chosen by name and equals DiffSynth's SDPA path bit for bit."""

import pytest
import torch
from diffsynth.models import wan_video_dit

from sakuga.errors import AttentionError
from sakuga.recipe import ATTENTIONS
from sakuga.wan.attention import EXACT, LOSSY, attention, resolve_attention

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_sdpa_equals_diffsynth_without_sage_and_is_taken_back_afterwards():
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, length, 96, generator=generator) for length in (10, 7, 7))
    stock = wan_video_dit.flash_attention
    expected = stock(q, k, v, num_heads=2, compatibility_mode=True)
    with attention("sdpa"):
        assert wan_video_dit.SAGE_ATTN_AVAILABLE is False
        module = wan_video_dit.AttentionModule(num_heads=2)
        assert torch.equal(module(q, k, v), expected)
    assert wan_video_dit.flash_attention is stock


def test_an_error_inside_takes_the_kernel_back_too():
    stock = wan_video_dit.flash_attention
    with pytest.raises(RuntimeError, match="boom"), attention("sdpa"):
        raise RuntimeError("boom")
    assert wan_video_dit.flash_attention is stock


def test_a_recipe_takes_the_names_that_there_are_kernels_for():
    assert {*ATTENTIONS} == {"auto", *EXACT, *LOSSY}


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_auto_is_exact_whatever_is_installed(device, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert resolve_attention("auto", device=device, head_dim=128, dtype=torch.bfloat16) == "sdpa"


@pytest.mark.parametrize("name", ["sage", "fa2", "fa3"])
def test_gpu_kernels_are_refused_on_a_cpu_although_sage_is_installed(name):
    with pytest.raises(AttentionError, match="needs a CUDA device"):
        resolve_attention(name, device=CPU, head_dim=128, dtype=torch.bfloat16)


def test_kernels_that_cannot_run_are_refused_one_by_one(monkeypatch):
    with pytest.raises(AttentionError, match="unknown"):
        resolve_attention("flash", device=CUDA, head_dim=128, dtype=torch.bfloat16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(AttentionError, match="fp16 or bf16"):
        resolve_attention("sage", device=CUDA, head_dim=128, dtype=torch.float32)
    with pytest.raises(AttentionError, match="head sizes"):
        resolve_attention("sage", device=CUDA, head_dim=48, dtype=torch.bfloat16)
    assert resolve_attention("sage", device=CUDA, head_dim=96, dtype=torch.float16) == "sage"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AttentionError, match="flash_attn"):
        resolve_attention("fa2", device=CUDA, head_dim=128, dtype=torch.bfloat16)
