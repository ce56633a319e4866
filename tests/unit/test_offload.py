"""Memory plans change where weights lie and no bit of a render."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from sakuga.engine import LocalEngine, RenderInputs
from sakuga.engine.plan import ExecutionPlan
from sakuga.errors import PlanError
from sakuga.recipe import LoraRef
from sakuga.wan.memory import MemoryPlan
from sakuga.wan.offload import Lendable, Offloader
from sakuga.wan.precision import PRECISIONS, quantization
from small_lora import lora_for
from stock_pipeline import clip, render
from tiny_wan import tiny_t2v, tiny_two_experts, tiny_vace

CPU = torch.device("cpu")


class Counted(Lendable):
    """Notes how many bytes are lent at once; on a CPU a copy stands for the device's."""

    now = most = 0

    def _copy(self, x):
        return super()._copy(x.clone())

    def lend(self):
        was = self.is_lent
        super().lend()
        Counted.now += 0 if was else self.num_bytes
        Counted.most = max(Counted.most, Counted.now)

    def give_back(self):
        Counted.now -= self.num_bytes if self.is_lent else 0
        super().give_back()


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    monkeypatch.setattr("sakuga.wan.offload.Lendable", Counted)
    Counted.now = Counted.most = 0


PLANS = ["components", "layers:1", "layers:300KB", "layers:1GB", "disk"]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", [tiny_t2v, tiny_two_experts, tiny_vace])
def test_a_plan_changes_no_bit(plan, family, tokenizer_dir):
    inputs = RenderInputs(videos={"vace_video": clip(9)}) if family is tiny_vace else RenderInputs()
    model = family(tokenizer_dir)
    expected = render(model, inputs)[1]
    home = {name: value.clone() for name, value in model.pipe.dit.state_dict().items()}
    lent = replace(model, memory=MemoryPlan.parse(plan))
    assert np.array_equal(render(lent, inputs)[1], expected)
    assert Counted.most > 0
    for name, value in model.pipe.dit.state_dict().items():
        assert torch.equal(value, home[name])


def test_how_much_is_lent_at_once(tokenizer_dir):
    model = tiny_two_experts(tokenizer_dir)
    dit = Lendable(model.pipe.dit, CPU, torch.float32)
    block = Lendable(model.pipe.dit.blocks[0], CPU, torch.float32).num_bytes
    rest = dit.num_bytes - 2 * block
    encoders = max(
        Lendable(getattr(model.pipe, name), CPU, torch.float32).num_bytes for name in ("text_encoder", "vae")
    )
    render(replace(model, memory=MemoryPlan.parse("components")))
    assert Counted.most == max(dit.num_bytes, encoders), "one expert, or one encoder at a time"
    Counted.now = Counted.most = 0
    offloader = Offloader(model.pipe, MemoryPlan.parse(f"layers:{block}"), CPU, torch.float32)
    offloader.use("dit")
    assert Counted.now == rest + block, "the first block stays, as its budget says"
    with offloader.block(model.pipe.dit.blocks[1]):
        assert Counted.now == rest + 2 * block
    assert Counted.now == rest + block
    offloader.use("dit2")
    assert Counted.now == rest + block, "the other expert's went home"
    offloader.give_back()
    assert Counted.now == 0


@pytest.mark.parametrize("plan", ["components", "layers:300KB", "disk"])
@pytest.mark.parametrize("hot", [False, True])
def test_loras_come_and_go_under_a_plan(plan, hot, tokenizer_dir, tmp_path):
    model = tiny_t2v(tokenizer_dir)
    path, ref = lora_for(model.pipe.dit, tmp_path / "l.safetensors")
    inputs, want = RenderInputs(lora_paths=(path,)), {"loras": (LoraRef(sha256=ref, weight=0.8),)}
    execution = ExecutionPlan(memory=MemoryPlan.parse(plan), hot_loras=hot)
    recipe, plain = render(model)
    _, with_lora = render(model, inputs, **want)
    engine = LocalEngine(replace(tiny_t2v(tokenizer_dir), memory=execution.memory), execution)
    assert np.array_equal(engine.render(recipe).frames_THWC, plain)
    ours = engine.render(replace(recipe, **want), inputs).frames_THWC
    assert np.abs(ours.astype(int) - with_lora).max() <= (1 if hot else 0)
    assert not np.array_equal(ours, plain)
    assert np.array_equal(engine.render(recipe).frames_THWC, plain), "the base again, to the bit"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantized_weights_are_lent_as_they_are(precision, tokenizer_dir):
    model = tiny_t2v(tokenizer_dir)
    model.pipe.to(dtype=torch.bfloat16)
    model.pipe.torch_dtype = torch.bfloat16
    quantization(PRECISIONS[precision], model.card.kept_layers).quantize_model(model.pipe.dit)
    expected = render(model)[1]
    assert np.array_equal(render(replace(model, memory=MemoryPlan.parse("layers:1")))[1], expected)


def test_an_error_between_lending_and_giving_back_leaves_the_engine_usable(tokenizer_dir, monkeypatch):
    model = replace(tiny_t2v(tokenizer_dir), memory=MemoryPlan.parse("layers:1"))
    recipe, expected = render(model)
    engine = LocalEngine(model)
    state = engine.start(recipe, RenderInputs())
    copy, calls = Counted._copy, []

    def exhausted(self, x):
        calls.append(x)
        if len(calls) == 20:
            raise torch.OutOfMemoryError("simulated")
        return copy(self, x)

    monkeypatch.setattr(Counted, "_copy", exhausted)
    with pytest.raises(MemoryError, match="memory plan"):
        engine.step(state)
    monkeypatch.setattr(Counted, "_copy", copy)
    while not state.is_done:
        state = engine.step(state)
    assert np.array_equal(engine.finish(state).frames_THWC, expected)


def test_compile_and_moving_weights_do_not_go_together():
    with pytest.raises(PlanError, match="layers:5 moves them"):
        ExecutionPlan(memory=MemoryPlan.parse("layers:5"), compile=True).check(CPU)
    ExecutionPlan(compile=False, memory=MemoryPlan.parse("disk")).check(CPU)


class FakeStream:
    """A CUDA stream on a machine without one: copies happen when they are asked for."""

    device = CPU

    def __init__(self, *_):
        self.waited, self.synchronized = [], 0

    def record_event(self):
        return self

    def wait_event(self, event):
        self.waited.append(event)

    def synchronize(self):
        self.synchronized += 1


@pytest.fixture
def streams(monkeypatch):
    here = FakeStream()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: here)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(Counted, "pin", lambda self: None)
    return here


def streamed(model, plan="layers:1"):
    offloader = Offloader(model.pipe, MemoryPlan.parse(plan), CPU, torch.float32)
    offloader._stream = FakeStream()
    offloader.use("dit")
    return offloader


def test_the_next_block_is_copied_while_one_computes(streams, tokenizer_dir):
    model = tiny_t2v(tokenizer_dir)
    offloader, (first, second) = streamed(model), model.pipe.dit.blocks
    before = Counted.now
    with offloader.block(first):
        assert offloader._by_block[second][0]._ahead is not None
    assert Counted.now == before
    with offloader.block(second):
        assert streams.waited, "until the copy has arrived"
    with offloader.block(first):
        assert streams.synchronized, "until the block before is computed"


def test_a_copy_ahead_does_not_outlive_the_weights_that_it_is_of(streams, tokenizer_dir):
    """A step that was left, and then another LoRA: the block must not come with the old one."""
    model = tiny_t2v(tokenizer_dir)
    offloader, (first, second) = streamed(model), model.pipe.dit.blocks
    with offloader.block(first):
        pass
    offloader.give_back()
    with torch.no_grad():
        second.ffn[0].weight.fill_(7.0)
    offloader.use("dit")
    with offloader.block(second):
        assert (second.ffn[0].weight == 7.0).all()


def test_quantized_blocks_are_copied_ahead_too(streams, tokenizer_dir):
    model = tiny_t2v(tokenizer_dir)
    quantization(PRECISIONS["int8"], model.card.kept_layers).quantize_model(model.pipe.dit)
    offloader, (first, second) = streamed(model), model.pipe.dit.blocks
    weight = second.ffn[0].weight.dequantize().clone()
    with offloader.block(first):
        pass
    with offloader.block(second):
        assert torch.equal(second.ffn[0].weight.dequantize(), weight)
