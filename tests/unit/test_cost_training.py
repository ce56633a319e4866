"""Predicted bytes of a training step are those that autograd keeps in the engine's own forward pass.

Run: pytest tests/unit/test_cost_training.py
"""

import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from diffsynth.models.wan_video_dit import WanModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from sakuga.cli import main as cli
from sakuga.cost.activations import activations
from sakuga.cost.devices import DEVICES
from sakuga.cost.training import TrainPlan, advise_training, estimate_training, largest_num_frames, train_bytes
from sakuga.errors import GeometryError, TrainError
from sakuga.training.adapters import add_lora
from sakuga.training.config import IMAGE_TARGETS, TARGETS, TrainConfig
from sakuga.wan.attention import sdpa
from sakuga.wan.catalogue import card
from sakuga.wan.forward import Attentions, Context, DitForward
from sakuga.wan.shapes import DitShape

ROOT = Path(__file__).parents[2]
GRID = (3, 20, 24)
TOKENS = 3 * 10 * 12
TEXT_TOKENS = 24
NUM_LAYERS = 3
RANK = 8
MEDIUM = DitShape(dim=384, ffn_dim=1152, num_heads=4, num_layers=NUM_LAYERS, text_dim=64, freq_dim=64)
WIDE = dataclasses.replace(MEDIUM, dim=192, ffn_dim=1152, num_heads=2)
WITH_PICTURE = dataclasses.replace(MEDIUM, num_image_tokens=257)


class Flash(torch.autograd.Function):
    """What a fused kernel keeps, where nothing can be computed."""

    @staticmethod
    def forward(ctx, q, k, v, num_heads):
        ctx.save_for_backward(q, k, v, out := torch.empty_like(q), q.new_empty(num_heads * q.shape[1]).float())
        return out


def flash(q, k, v, num_heads):
    return Flash.apply(*(x.bfloat16() for x in (q, k, v)), num_heads)


class Step:
    """One training step of a small DiT; `device` "cuda" is faked, so that a GPU's autocast decides the types."""

    def __init__(self, shape: DitShape, targets: tuple[str, ...] | None, *, device="cpu"):
        self.shape, self.fake = shape, FakeTensorMode() if device == "cuda" else nullcontext()
        self.kernel = flash if device == "cuda" else sdpa
        self.dit = WanModel(
            dim=shape.dim, in_dim=16, ffn_dim=shape.ffn_dim, out_dim=16, text_dim=64, freq_dim=64, eps=1e-6,
            patch_size=(1, 2, 2), num_heads=shape.num_heads, num_layers=NUM_LAYERS,
            has_image_input=shape.num_image_tokens > 0,
        )  # fmt: skip
        if targets is not None:
            self.dit.requires_grad_(False).bfloat16()
            add_lora(self.dit, TrainConfig(rank=RANK, targets=targets))
        with self.fake:
            if device == "cuda":
                self._move()
            self.latents = torch.zeros(1, 16, *GRID, device=device)
            self.text = torch.zeros(1, TEXT_TOKENS, 64, device=device)
            self.image = torch.zeros(1, 257, shape.dim, device=device) if shape.num_image_tokens else None
            self.time = torch.full((1,), 500.0, device=device)
        self.forward = DitForward(self.dit)

    def _move(self) -> None:
        for module in self.dit.modules():
            for name, parameter in module.named_parameters(recurse=False):
                moved = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                module._parameters[name] = torch.nn.Parameter(moved, requires_grad=parameter.requires_grad)
        self.dit.freqs = tuple(torch.empty(axis.shape, dtype=axis.dtype, device="cuda") for axis in self.dit.freqs)

    def loss(self, *, recompute: bool) -> torch.Tensor:
        context = Context(text_BLD=self.dit.text_embedding(self.text), image_BLD=self.image)
        tokens = self.forward.embed(self.latents, self.time)
        x, attend = tokens.x_BSD, Attentions(among_tokens=self.kernel, to_text=self.kernel)
        run = self.forward._run_block
        for block in self.dit.blocks:
            inputs = (block, x, tokens, context, attend)
            x = checkpoint(run, *inputs, use_reentrant=False) if recompute else run(*inputs)
        return self.forward.head(tokens, x).float().square().mean()

    def saved_bytes(self, *, autocast: str, recompute: bool) -> tuple[int, int]:
        """Activations and copies of weights, which have a matrix's shape that no activation has."""
        weights = {shape for p in self.dit.parameters() for shape in (tuple(p.shape), tuple(p.shape)[::-1])}
        known = {p.untyped_storage()._cdata for p in self.dit.parameters()}
        found = {False: {}, True: {}}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                found[tuple(tensor.shape) in weights][storage._cdata] = storage  # kept, so that no address comes twice
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with self.fake, hooks, _autocast(autocast):
            self.loss(recompute=recompute)
            for rotation in self.forward._rotations.values():  # kept by the forward pass itself
                pack(rotation)
        activations, copies = (sum(storage.nbytes() for storage in found[kind].values()) for kind in (False, True))
        return activations, copies


@contextmanager
def _autocast(device: str) -> Generator[None]:
    """On a machine without a GPU, `torch.autocast("cuda")` refuses itself."""
    before = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before)


def predicted(shape: DitShape, targets, *, recompute: bool, autocast: str) -> int:
    acts = activations(
        shape, tokens=TOKENS, text_tokens=TEXT_TOKENS, image_tokens=shape.num_image_tokens,
        lora=None if targets is None else (RANK, targets), norms_fp32=autocast != "cpu",
    )  # fmt: skip
    return NUM_LAYERS * (acts.boundary if recompute else acts.block) + acts.outside


@pytest.mark.parametrize("recompute", [False, True], ids=["none", "recompute"])
@pytest.mark.parametrize(
    ("shape", "targets", "autocast"),
    [
        (MEDIUM, TARGETS, "cuda"), (MEDIUM, TARGETS, "cpu"), (WIDE, TARGETS, "cuda"),
        (MEDIUM, ("q", "v"), "cuda"), (WITH_PICTURE, TARGETS + IMAGE_TARGETS, "cuda"),
        (MEDIUM, None, "cuda"), (MEDIUM, None, "cpu"), (WIDE, None, "cuda"),
        (WITH_PICTURE, None, "cuda"),
    ],
    ids=[
        "lora-cuda", "lora-cpu", "lora-wide", "lora-q-v", "lora-picture",
        "full-cuda", "full-cpu", "full-wide", "full-picture",
    ],
)  # fmt: skip
def test_kept_activations_are_those_of_autograd(shape, targets, autocast, recompute):
    step = Step(shape, targets, device=autocast)
    counted, _ = step.saved_bytes(autocast=autocast, recompute=recompute)
    assert predicted(shape, targets, recompute=recompute, autocast=autocast) == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("targets", [TARGETS, None], ids=["lora", "full"])
@pytest.mark.parametrize("shape", [MEDIUM, WIDE], ids=["medium", "wide"])
def test_peak_of_a_step_is_that_of_its_backward_pass(shape, targets):
    step = Step(shape, targets)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled, _autocast("cpu"):
        loss = step.loss(recompute=True)
        torch.clear_autocast_cache()  # as at the end of `torch.autocast`
        loss.backward()
    acts = activations(
        shape,
        tokens=TOKENS,
        text_tokens=TEXT_TOKENS,
        lora=None if targets is None else (RANK, targets),
        norms_fp32=False,
    )
    block, head = (_num_trained(module) for module in (step.dit.blocks[0], step.dit.head))
    # Gradients of the later blocks are there, those of this block and of the embedding come last.
    gradients = 4 * ((NUM_LAYERS - 1) * block + head)
    copies = 0 if targets else 2 * (_num_trained(step.dit) - (NUM_LAYERS - 1) * block)
    told = gradients + copies + NUM_LAYERS * acts.boundary + acts.outside + acts.block + acts.widest
    assert told == pytest.approx(_peak_bytes(profiled), rel=0.1)


def _peak_bytes(profiled: profile) -> int:
    """Of the allocator: under a dispatch mode, as of `LiveBytes`, autograd would not add gradients in place."""
    events = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def _num_trained(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def plan(
    model="wan2.1-t2v-14b", *, width=832, height=480, num_frames=81, num_gpus=1, fsdp=False, ulysses=1, **settings
):
    config = TrainConfig(**{"model": model, "rank": 32, "checkpointing": "recompute"} | settings)
    return TrainPlan(
        settings=config,
        width=width,
        height=height,
        num_frames=num_frames,
        num_gpus=num_gpus,
        fsdp=fsdp,
        ulysses=ulysses,
    )


def told(asked: TrainPlan, gpu="h200"):
    return estimate_training(asked, card(asked.settings.model), DEVICES[gpu])


@pytest.mark.parametrize(("model", "rank", "params"), [("wan2.1-t2v-1.3b", 32, 44e6), ("wan2.1-t2v-14b", 32, 153e6)])
def test_parts_of_a_lora_by_hand(model, rank, params):
    parts = told(plan(model, rank=rank, ema_decay=0.999)).parts
    assert parts.trained == parts.gradients == parts.ema == pytest.approx(4 * params, rel=0.01)
    assert parts.optimizer == 2 * parts.trained
    assert parts.frozen == pytest.approx(2 * card(model).num_params, rel=0.001)
    eight = told(plan(model, rank=rank, base_precision="int8", optimizer="adamw8bit")).parts
    assert 0.5 < eight.frozen / parts.frozen < 0.54
    assert eight.optimizer == pytest.approx(2 * params, rel=0.03)


def test_operations_of_a_step_by_hand():
    """3 (2 P N) and 2 + 2.5 times attention, of a LoRA with checkpointing."""
    shape, tokens = card("wan2.1-t2v-14b").dit, 32760
    linear = 3 * 2 * (shape.block_linear_params - 2 * shape.dim**2) * shape.num_layers * tokens
    attention = 4.5 * 4 * tokens * (tokens + 512) * shape.dim * shape.num_layers
    assert told(plan()).step_flops == pytest.approx(linear + attention, rel=0.03)
    assert told(plan(mode="full")).step_flops > told(plan()).step_flops


def test_offload_moves_checkpoints_to_the_host_and_ranks_share_the_rest():
    kept, moved = told(plan()), told(plan(checkpointing="offload"))
    assert moved.parts.sent == 40 * 32760 * 5120 * 2
    assert moved.parts.host == 40 * 2**29, "pinned in powers of two"
    assert kept.parts.peak - moved.parts.peak == moved.parts.sent
    assert moved.transfer_s > 0 == kept.transfer_s
    full, sharded = told(plan(mode="full")), told(plan(mode="full", num_gpus=8, fsdp=True))
    assert sharded.parts.optimizer == full.parts.optimizer // 8
    assert sharded.exchange_s > 0 == full.exchange_s
    shared = told(plan(num_gpus=4, ulysses=4))
    assert shared.parts.kept == pytest.approx(kept.parts.kept / 4, rel=0.01)
    assert shared.compute_s == pytest.approx(kept.compute_s / 4)
    assert shared.parts.frozen == kept.parts.frozen


@pytest.mark.parametrize("gpu", ["rtx4090", "a100", "h200"])
def test_the_largest_number_of_frames_fits_and_the_next_does_not(gpu):
    asked, memory = plan("wan2.1-t2v-1.3b"), DEVICES[gpu].memory_bytes
    frames = told(asked, gpu).largest_num_frames
    assert frames % 4 == 1
    assert told(dataclasses.replace(asked, num_frames=frames), gpu).fits
    assert not told(dataclasses.replace(asked, num_frames=frames + 4), gpu).fits
    assert largest_num_frames(plan(), card("wan2.1-t2v-14b"), 24 * 10**9) == 0, memory


def test_gradients_of_one_micro_batch_come_as_its_activations_go():
    model = card("wan2.1-t2v-1.3b")
    for asked in (plan(model.name), plan(model.name, mode="full")):
        several, one = (
            train_bytes(dataclasses.replace(asked, accumulates=several), model) for several in (True, False)
        )
        assert several.gradients == one.gradients == several.early
        offloaded = dataclasses.replace(asked.settings, checkpointing="offload")
        to_the_end = train_bytes(dataclasses.replace(asked, settings=offloaded), model).kept
        assert several.peak - one.peak == min(several.gradients, one.kept - to_the_end)


def test_advice_fits():
    model = card("wan2.1-t2v-14b")
    asked = plan(checkpointing="none")
    assert "checkpointing recompute" in advise_training(asked, model, DEVICES["h200"].memory_bytes)
    assert "checkpointing offload" in advise_training(asked, model, DEVICES["l40s"].memory_bytes)
    assert "base precision int8" in advise_training(asked, model, 40 * 10**9)
    full = advise_training(plan(mode="full"), model, DEVICES["h200"].memory_bytes)
    assert "optimizer adamw8bit and FSDP on 2 GPUs" in full
    assert advise_training(plan(width=1280, height=720), model, 8 * 10**9).startswith("take a smaller model")


def test_two_experts_in_one_run_hold_both_bases():
    both, one = told(plan("wan2.2-t2v-a14b")), told(plan("wan2.2-t2v-a14b", expert="high"))
    assert both.parts.frozen == 2 * one.parts.frozen
    assert both.num_trained == 2 * one.num_trained
    assert both.parts.kept == one.parts.kept
    assert told(plan(mode="distill")).compute_s > told(plan()).compute_s


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fsdp": True}, "there is one"),
        ({"num_gpus": 3, "ulysses": 2}, "ulysses 2 does not divide the number of GPUs, 3"),
        ({"num_gpus": 3, "ulysses": 3}, "does not divide the 40 heads"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"num_gpus": 0}, "num_gpus is 0"),
    ],
)
def test_ranks_that_cannot_share_are_refused(change, message):
    with pytest.raises(TrainError, match=message):
        told(dataclasses.replace(plan(), **change))


def test_a_size_that_the_model_cannot_have_is_refused():
    with pytest.raises(GeometryError, match="nearest: 81"):
        told(plan(num_frames=80))


def test_the_page_of_figures_is_what_is_predicted_today():
    spec = importlib.util.spec_from_file_location("make_training_cost", ROOT / "docs" / "make_training_cost.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.page() == made.PAGE.read_text(encoding="utf-8"), "run python docs/make_training_cost.py"


ASKED = ("estimate", "--train", "--model", "wan2.1-t2v-14b", "--gpu", "h200", "--num-frames", "81")


def test_the_command_says_what_fits(capsys):
    assert cli.run([*ASKED, "--width", "832", "--height", "480", "--checkpointing", "recompute", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fits"]
    assert said["parts"]["peak"] == told(plan(rank=16)).parts.peak
    assert cli.run([*ASKED, "--mode", "full", "--num-gpus", "2", "--fsdp"]) == 0
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert "it fits with checkpointing" in text


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--rank", "0"], "E_TRAIN", "rank is 0"),
        (["--mode", "full", "--base-precision", "int8"], "E_TRAIN", "cannot be int8"),
        (["--targets", "q,k_img"], "E_TRAIN", "no k_img"),
        (["--expert", "high"], "E_TRAIN", "one expert"),
        (["--fsdp"], "E_TRAIN", "there is one"),
        (["--steps", "5"], "E_USAGE", "leave it out with --train"),
        (["--gpu", "h1000"], "E_DEVICE", "unknown"),
    ],
)
def test_the_command_refuses(options, code, message, capsys):
    assert cli.run([*ASKED, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error {code}: ")
    assert message in said
    assert said.count("\n") == 1


def test_options_of_training_need_train(capsys):
    assert cli.run(["estimate", "--rank", "4"]) == 2
    assert "give --train" in capsys.readouterr().err
