"""Attention is chosen by name and equals DiffSynth's SDPA path bit for bit."""

import time

import pytest
import torch
from diffsynth.models import wan_video_dit

from sakuga.errors import AttentionError
from sakuga.recipe import ATTENTIONS
from sakuga.wan import attention as attention_module
from sakuga.wan.attention import EXACT, LOSSY, attention, check_attention, sdpa, usable_kernels
from sakuga.wan.attention_choice import choose_attention

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


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name not in ("auto", "sdpa")])
def test_gpu_kernels_are_refused_on_a_cpu_although_sage_is_installed(name):
    with pytest.raises(AttentionError, match="needs a CUDA device"):
        check_attention(name, device=CPU, head_dim=128, dtype=torch.bfloat16)


def test_kernels_that_cannot_run_are_refused_one_by_one(monkeypatch):
    with pytest.raises(AttentionError, match="did you mean 'sdpa'"):
        check_attention("spda", device=CUDA, head_dim=128, dtype=torch.bfloat16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(AttentionError, match="fp16 or bf16"):
        check_attention("sage", device=CUDA, head_dim=128, dtype=torch.float32)
    with pytest.raises(AttentionError, match="head sizes"):
        check_attention("sage", device=CUDA, head_dim=48, dtype=torch.bfloat16)
    check_attention("sage", device=CUDA, head_dim=96, dtype=torch.float16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AttentionError, match="flash_attn_interface"):
        check_attention("flash3", device=CUDA, head_dim=128, dtype=torch.bfloat16)


def test_a_package_inside_one_that_is_absent():
    with pytest.raises(AttentionError, match=r"flash_attn.cute"):
        check_attention("flash4", device=CUDA, head_dim=128, dtype=torch.bfloat16)


def test_on_a_cpu_there_is_one_exact_kernel_and_nothing_to_try():
    assert usable_kernels(device=CPU, head_dim=128, dtype=torch.bfloat16) == ("sdpa",)
    chosen = choose_attention(num_tokens=10, num_heads=2, head_dim=48, device=CPU, dtype=torch.float32)
    assert chosen.name == "sdpa" and chosen.trials == ()


@pytest.fixture
def kernels(monkeypatch):
    """Kernels of other names, with what each does to sdpa's result and how long it sleeps."""

    def pretend(**changes):
        for name, change in changes.items():

            def run(q, k, v, num_heads, change=change):
                return change(sdpa(q, k, v, num_heads))

            monkeypatch.setitem(attention_module._KERNELS, name, run)
        shape = {"num_tokens": 200, "num_heads": 2, "head_dim": 48}
        return shape | {"device": CPU, "dtype": torch.float32, "names": tuple(changes)}

    return pretend


def slow(out, seconds=0.05):
    time.sleep(seconds)
    return out


def no_kernel_image(out):
    raise RuntimeError("no kernel image is available\nfor this device")


def test_the_fastest_of_those_that_are_right(kernels):
    case = kernels(
        right_but_slow=slow, right=lambda out: out, wrong_and_fast=lambda out: out * 1.01, broken=no_kernel_image
    )
    chosen = choose_attention(**case)
    assert chosen.name == "right"
    report = {row["name"]: row for row in chosen.report()}
    assert report["wrong_and_fast"]["refused"] == "relative error 0.01 against fp32, at most 0.0001 is exact"
    assert report["broken"]["refused"] == "no kernel image is available"
    assert report["right_but_slow"]["seconds"] > report["right"]["seconds"]
    assert report["right"]["relative_error"] < 1e-5


def test_when_none_is_right(kernels):
    case = kernels(zeros=lambda out: out * 0, broken=no_kernel_image)
    with pytest.raises(AttentionError, match=r"no attention kernel works here \(zeros: relative error 1 .*broken: no"):
        choose_attention(**case)
