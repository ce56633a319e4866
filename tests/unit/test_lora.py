"""LoRA: every tensor finds its place or the file is refused; fusing comes off again to the same bits."""

import pytest
import torch
from diffsynth.utils.lora import GeneralLoRALoader
from safetensors.torch import save_file

from sakuga.errors import LoraError, ModelError
from sakuga.recipe import LoraRef
from sakuga.wan.lora import LoraSwitch, embedded_lora
from sakuga.wan.weights import file_sha256
from small_lora import TARGETS, make_model, make_tensors


def write(path, style: str, tensors: dict[str, torch.Tensor] | None = None):
    """Save in one of the known key styles."""
    renamed = {}
    for key, tensor in (tensors or make_tensors()).items():
        target, kind = key.rsplit(".", 1)
        renamed[
            style.format(target=target, kohya=target.replace(".", "_"), kind=kind, k="down" if kind == "A" else "up")
        ] = tensor
    save_file(renamed, path)
    return path


STYLES = {
    "diffsynth": "{target}.lora_{kind}.default.weight",
    "plain": "{target}.lora_{kind}.weight",
    "comfy": "diffusion_model.{target}.lora_{kind}.weight",
    "diffusers": "transformer.{target}.lora_{kind}.weight",
    "peft": "base_model.model.{target}.lora_{kind}.weight",
    "dotted": "{target}.lora_{k}.weight",
    "kohya": "lora_unet_{kohya}.lora_{k}.weight",
    "fp8 wrapper": "{target}.module.lora_{kind}.default.weight",
}  # fmt: skip


def test_fused_weights_equal_those_of_diffsynth(tmp_path):
    path = write(tmp_path / "l.safetensors", STYLES["diffsynth"])
    ours, stock = make_model(), make_model()
    switch = LoraSwitch([ours])
    switch.register(path)
    switch.apply([LoraRef(sha256=file_sha256(path), weight=0.7)])
    tensors = {STYLES["diffsynth"].format(target=k[:-2], kind=k[-1], k=""): v for k, v in make_tensors().items()}
    GeneralLoRALoader(torch_dtype=torch.float32).fuse_lora_to_base_model(stock, tensors, alpha=0.7)
    for target in TARGETS:
        difference = ours.get_submodule(target).weight - stock.get_submodule(target).weight
        # Only the order of two multiplications differs.
        assert difference.abs().max() < 1e-6


def test_switching_loras_restores_the_base_to_the_bit(tmp_path):
    model = make_model()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    one = write(tmp_path / "one.safetensors", STYLES["plain"], make_tensors(1))
    two = write(tmp_path / "two.safetensors", STYLES["plain"], make_tensors(2))
    switch = LoraSwitch([model])
    switch.register(one)
    switch.register(two)
    first, second = LoraRef(sha256=file_sha256(one)), LoraRef(sha256=file_sha256(two), weight=0.3)
    switch.apply([first])
    alone = model.get_submodule(TARGETS[0]).weight.clone()
    switch.apply([first, second])
    assert not torch.equal(model.get_submodule(TARGETS[0]).weight, alone)
    switch.apply([first])
    assert torch.equal(model.get_submodule(TARGETS[0]).weight, alone)
    switch.apply([])
    for name, value in model.state_dict().items():
        assert torch.equal(value, base[name]), name


def test_a_lora_for_one_of_two_experts(tmp_path):
    """High comes first, as DiffSynth's `dit`; each LoRA changes its own expert and no other."""
    experts = [make_model(0), make_model(5)]
    base = [expert.blocks[0].self_attn.q.weight.clone() for expert in experts]
    path = write(tmp_path / "l.safetensors", STYLES["plain"])
    switch = LoraSwitch(experts)
    switch.register(path)
    for name, changed in (("high", [True, False]), ("low", [False, True]), (None, [True, True])):
        switch.apply([LoraRef(sha256=file_sha256(path), expert=name)])
        weights = [expert.blocks[0].self_attn.q.weight for expert in experts]
        assert [not torch.equal(weight, start) for weight, start in zip(weights, base, strict=True)] == changed


def test_a_lora_that_was_not_registered():
    with pytest.raises(LoraError, match="not among the files given"):
        LoraSwitch([make_model()]).apply([LoraRef(sha256="f" * 64)])


def test_embedded_lora_by_name(tmp_path):
    assert embedded_lora("fairy", "wan-mini", tmp_path, ("fairy",)) == tmp_path / "fairy.safetensors"
    with pytest.raises(ModelError, match="did you mean 'fairy'"):
        embedded_lora("fary", "wan-mini", tmp_path, ("fairy",))
    with pytest.raises(ModelError, match="none of its own"):
        embedded_lora("fairy", "wan2.1-t2v-14b", None, ())


@pytest.mark.parametrize("weight", [0.7, -1.0])
def test_beside_the_weights_is_the_same_sum_as_fused(tmp_path, weight):
    one = write(tmp_path / "one.safetensors", STYLES["plain"], make_tensors(1))
    two = write(tmp_path / "two.safetensors", STYLES["plain"], make_tensors(2))
    refs = [LoraRef(sha256=file_sha256(one), weight=weight), LoraRef(sha256=file_sha256(two), weight=0.3)]
    x, outputs = torch.randn(3, 8), {}
    for hot in (False, True):
        model = make_model()
        base = model.get_submodule(TARGETS[0])(x)
        switch = LoraSwitch([model], hot=hot)
        switch.register(one)
        switch.register(two)
        before = model.get_submodule(TARGETS[0]).weight.clone()
        switch.apply(refs)
        outputs[hot] = model.get_submodule(TARGETS[0])(x)
        assert torch.equal(model.get_submodule(TARGETS[0]).weight, before) == hot
        assert switch.report(refs[0])["hot"] == (2 if hot else 0)
        switch.apply([])
        assert torch.equal(model.get_submodule(TARGETS[0])(x), base)
    assert (outputs[True] - outputs[False]).abs().max() < 1e-4 * outputs[False].abs().max()


def test_beside_the_weights_other_kinds_than_low_rank(tmp_path):
    """LoHa, and DoRA, whose change depends on the base; a norm's difference is fused either way."""
    generator = torch.Generator().manual_seed(3)
    q = {f"{TARGETS[0]}.lora_{k}.weight": v for k, v in (("A", torch.randn(4, 8)), ("B", torch.randn(8, 4)))}
    q[f"{TARGETS[0]}.lora_magnitude_vector"] = torch.rand(8, generator=generator) + 0.5
    loha = {"hada_w1_a": (16, 4), "hada_w1_b": (4, 8), "hada_w2_a": (16, 4), "hada_w2_b": (4, 8)}
    q |= {f"{TARGETS[1]}.{part}": torch.randn(shape, generator=generator) for part, shape in loha.items()}
    q["blocks.0.norm3.diff"] = torch.randn(8, generator=generator)
    path = tmp_path / "mixed.safetensors"
    save_file(q, path)
    ref, x, outputs = LoraRef(sha256=file_sha256(path), weight=0.5), torch.randn(3, 8), {}
    for hot in (False, True):
        model = make_model()
        switch = LoraSwitch([model], hot=hot)
        switch.register(path)
        switch.apply([ref])
        outputs[hot] = [model.get_submodule(name)(x) for name in (*TARGETS, "blocks.0.norm3")]
    for fused, hot in zip(*outputs.values(), strict=True):
        assert (fused - hot).abs().max() < 1e-4 * fused.abs().max()


def test_quantized_weights_take_loras_beside_them(tmp_path):
    from diffsynth.core import QuantizeConfig

    path = write(tmp_path / "l.safetensors", STYLES["plain"])
    model, x = make_model(), torch.randn(3, 8)
    plain = make_model()
    QuantizeConfig(method="torchao_int8_w8a16").quantize_model(model)
    for expert in (model, plain):
        switch = LoraSwitch([expert])
        switch.register(path)
        switch.apply([LoraRef(sha256=file_sha256(path))])
    for target in TARGETS:
        out, exact = (expert.get_submodule(target)(x) for expert in (model, plain))
        assert (out - exact).norm() < 0.02 * exact.norm()
