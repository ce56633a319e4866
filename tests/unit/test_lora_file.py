"""LoRA files: every key style and method finds its place with the right scale, or the file is refused.

peft is the reference for what a method does to a weight.
"""

import json

import peft
import pytest
import torch
from safetensors.torch import save_file

from sakuga.errors import LoraError
from sakuga.wan.lora_file import LowRank, read_lora
from small_lora import FFN, RANK, TARGETS, WIDTH, Q, make_model, make_tensors


def diffusers(target: str) -> str:
    return target.replace("self_attn.q", "attn1.to_q").replace("ffn.0", "ffn.net.0.proj")


def write(path, style: str, tensors: dict[str, torch.Tensor] | None = None, metadata=None):
    renamed = {}
    for key, tensor in (tensors or make_tensors()).items():
        target, kind = key.rsplit(".", 1)
        names = {"target": target, "kohya": target.replace(".", "_"), "diffusers": diffusers(target), "kind": kind,
                 "k": "down" if kind == "A" else "up"}  # fmt: skip
        renamed[style.format(**names)] = tensor
    save_file(renamed, path, metadata=metadata)
    return path


STYLES = {
    "diffsynth": "{target}.lora_{kind}.default.weight",
    "plain": "{target}.lora_{kind}.weight",
    "comfy": "diffusion_model.{target}.lora_{kind}.weight",
    "peft": "base_model.model.{target}.lora_{kind}.weight",
    "diffusers": "transformer.{diffusers}.lora_{kind}.weight",
    "dotted": "{target}.lora_{k}.weight",
    "kohya": "lora_unet_{kohya}.lora_{k}.weight",
    "fp8 wrapper": "{target}.module.lora_{kind}.default.weight",
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
def test_every_key_style_finds_every_layer(style, tmp_path):
    lora = read_lora(write(tmp_path / "l.safetensors", style), make_model())
    assert set(lora.changes) == {f"{target}.weight" for target in TARGETS}
    change = lora.changes[f"{Q}.weight"]
    assert isinstance(change, LowRank)
    assert torch.equal(change.a, make_tensors()[f"{Q}.A"])
    assert torch.equal(lora.changes[f"{FFN}.weight"].b, make_tensors()[f"{FFN}.B"])
    assert (lora.ranks, lora.num_tensors) == ((RANK,), 4)


def test_names_of_diffusers_are_wans():
    from diffsynth.models.wan_video_dit import WanModel

    from sakuga.wan.lora_file import module_name

    wan = WanModel(
        dim=96, in_dim=16, ffn_dim=96, out_dim=16, text_dim=16, freq_dim=32, eps=1e-6, patch_size=(1, 2, 2),
        num_heads=2, num_layers=1, has_image_input=True,
    )  # fmt: skip
    written = [f"blocks.0.attn{n}.to_{x}" for n in (1, 2) for x in ("q", "k", "v", "out.0")]
    written += [
        "blocks.0.attn2.add_k_proj",
        "blocks.0.attn2.add_v_proj",
        "blocks.0.ffn.net.0.proj",
        "blocks.0.ffn.net.2",
    ]
    written += [f"condition_embedder.{part}_embedder.linear_{n}" for part in ("time", "text") for n in (1, 2)]
    written += ["condition_embedder.time_proj", "proj_out"]
    names = {module_name(f"transformer.{name}", {}) for name in written}
    assert len(names) == len(written)
    assert names <= {name for name, module in wan.named_modules() if isinstance(module, torch.nn.Linear)}


def save_like_peft(model, folder):
    model.save_pretrained(str(folder))
    return folder / "adapter_model.safetensors"


METHODS = {
    "lora": lambda: peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=["q", "ffn.0"], init_lora_weights=False),
    "rslora": lambda: peft.LoraConfig(
        r=RANK, lora_alpha=3, use_rslora=True, target_modules=["q"], init_lora_weights=False
    ),
    "dora": lambda: peft.LoraConfig(r=RANK, lora_alpha=3, use_dora=True, target_modules=["q"], init_lora_weights=False),
    "loha": lambda: peft.LoHaConfig(r=RANK, alpha=3, target_modules=["q"], init_weights=False),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=["q"], init_weights=False),
    "lokr of low-rank factors": lambda: peft.LoKrConfig(
        r=1, alpha=3, decompose_both=True, decompose_factor=4, target_modules=["q"], init_weights=False
    ),
}


class WithForward(torch.nn.Module):
    """peft wants a forward."""

    def __init__(self, inner):
        super().__init__()
        self.blocks = inner.blocks

    def forward(self, x):
        return self.blocks[0].self_attn.q(x)


@pytest.mark.parametrize("method", METHODS)
def test_methods_change_weights_as_peft_does(method, tmp_path):
    base = make_model()
    before = {name: value.clone() for name, value in base.named_parameters()}
    torch.manual_seed(3)
    adapted = peft.get_peft_model(WithForward(make_model()), METHODS[method]())
    if method == "dora":  # else the magnitude is the base's and DoRA is LoRA
        with torch.no_grad():
            for name, param in adapted.named_parameters():
                if "magnitude" in name:
                    param.mul_(torch.linspace(0.5, 1.5, len(param)))
    lora = read_lora(save_like_peft(adapted, tmp_path), base)
    merged = dict(adapted.merge_and_unload().named_parameters())
    assert lora.changes
    for name, change in lora.changes.items():
        difference = merged[name].detach() - before[name]
        assert difference.abs().max() > 0.01
        assert torch.allclose(change.of(before[name]), difference, atol=1e-5), name
    untouched = [name for name in before if name not in lora.changes]
    assert all(torch.equal(merged[name], before[name]) for name in untouched), "a change of peft's that was not read"


def test_alpha_in_the_file_scales_by_rank(tmp_path):
    tensors = {STYLES["kohya"].format(kohya=k[:-2].replace(".", "_"), k="down" if k[-1] == "A" else "up"): v
               for k, v in make_tensors().items()}  # fmt: skip
    tensors["lora_unet_blocks_0_self_attn_q.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "l.safetensors")
    lora = read_lora(tmp_path / "l.safetensors", make_model())
    assert lora.changes[f"{Q}.weight"].scale == 1 / RANK
    assert lora.changes[f"{FFN}.weight"].scale == 1.0


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / RANK), (True, 6 / RANK**0.5)])
def test_alpha_in_diffusers_metadata(rslora, scale, tmp_path):
    config = {"transformer.r": RANK, "transformer.lora_alpha": 6, "transformer.use_rslora": rslora}
    path = tmp_path / "l.safetensors"
    write(path, STYLES["diffusers"], metadata={"lora_adapter_metadata": json.dumps(config)})
    assert read_lora(path, make_model()).changes[f"{Q}.weight"].scale == pytest.approx(scale)


@pytest.mark.parametrize(("shape", "dim"), [((WIDTH, 1), 1), ((1, WIDTH), 0), ((WIDTH,), 1)])
def test_dora_scale_of_kohya_by_row_and_by_column(shape, dim, tmp_path):
    model, tensors = make_model(), make_tensors()
    magnitude = torch.rand(shape) + 0.5
    save_file(
        {
            f"lora_unet_blocks_0_self_attn_q.lora_{k}.weight": tensors[f"{Q}.{kind}"]
            for k, kind in (("down", "A"), ("up", "B"))
        }
        | {"lora_unet_blocks_0_self_attn_q.dora_scale": magnitude},
        tmp_path / "l.safetensors",
    )
    weight = model.blocks[0].self_attn.q.weight.detach()
    changed = weight + read_lora(tmp_path / "l.safetensors", model).changes[f"{Q}.weight"].of(weight)
    assert torch.allclose(changed.norm(dim=dim), magnitude.flatten(), atol=1e-5)


def test_whole_differences_of_weights_and_biases(tmp_path):
    tensors = {
        "diffusion_model.blocks.0.norm3.diff": torch.full((WIDTH,), 0.5),
        "diffusion_model.blocks.0.norm3.diff_b": torch.full((WIDTH,), 0.25),
        f"diffusion_model.{Q}.diff_b": torch.ones(WIDTH),
        f"diffusion_model.{Q}.lora_down.weight": torch.ones(1, WIDTH),
        f"diffusion_model.{Q}.lora_up.weight": torch.ones(WIDTH, 1),
    }
    save_file(tensors, tmp_path / "l.safetensors")
    changes = read_lora(tmp_path / "l.safetensors", make_model()).changes
    assert set(changes) == {"blocks.0.norm3.weight", "blocks.0.norm3.bias", f"{Q}.weight", f"{Q}.bias"}
    assert torch.equal(changes["blocks.0.norm3.weight"].of(torch.zeros(WIDTH)), torch.full((WIDTH,), 0.5))


def damaged(change) -> dict[str, torch.Tensor]:
    tensors = make_tensors()
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"blocks.9.self_attn.q.A": t.pop(f"{Q}.A")}),
            r"3 of 4 tensors have a place, none for blocks\.9",
        ),
        (lambda t: t.update({"blocks.0.norm3.A": torch.ones(4, 8)}), r"has A for blocks\.0\.norm3, where parts"),
        (lambda t: t.pop(f"{Q}.B"), r"has A for blocks\.0\.self_attn\.q, where parts are lacking"),
        (lambda t: t.update({f"{Q}.A": torch.ones(RANK, WIDTH + 1)}), "another size"),
        (lambda t: t.update({f"{Q}.B": torch.ones(WIDTH, RANK + 1)}), "another size"),
        (lambda t: t.update({f"{Q}.B": torch.ones(WIDTH, RANK, 1)}), "no matrices"),
        (lambda t: t.update({f"{Q}.A": torch.ones(0, WIDTH), f"{Q}.B": torch.ones(WIDTH, 0)}), "rank 0"),
        (lambda t: t[f"{FFN}.B"].fill_(float("nan")), r"NaN or infinite values in blocks\.1\.ffn\.0"),
    ],
)
def test_a_lora_that_does_not_fit_whole_is_refused(change, message, tmp_path):
    path = write(tmp_path / "l.safetensors", STYLES["plain"], damaged(change))
    with pytest.raises(LoraError, match=message):
        read_lora(path, make_model())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.lora_magnitude_vector": torch.ones(8)}, "a scale but no change"),
        ({f"{Q}.alpha": torch.tensor(1.0)}, "a scale but no change"),
        ({f"{Q}.lokr_w1": torch.ones(2, 2)}, "has lokr_w1 for .* parts are lacking"),
        ({f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2": torch.ones(3, 3)}, "another shape"),
        ({f"{Q}.hada_w1_a": torch.ones(8, 4)}, "parts are lacking"),
        ({"blocks.0.norm3.diff": torch.ones(9)}, "another shape"),
        ({"blocks.0.nothing.diff": torch.ones(8)}, "0 of 1 tensors have a place"),
        ({f"{Q}.boft_R": torch.ones(8, 8)}, "unknown format"),
    ],
)
def test_incomplete_methods_are_refused(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(LoraError, match=message):
        read_lora(tmp_path / "l.safetensors", make_model())


def test_nan_alpha_and_bad_configuration_are_refused(tmp_path):
    tensors = {f"{Q}.lora_{kind}.weight": make_tensors()[f"{Q}.{kind}"] for kind in "AB"}
    save_file(tensors | {f"{Q}.alpha": torch.tensor(float("nan"))}, tmp_path / "l.safetensors")
    with pytest.raises(LoraError, match=r"NaN or infinite values in .*alpha"):
        read_lora(tmp_path / "l.safetensors", make_model())
    save_file(tensors, tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": "{"})
    with pytest.raises(LoraError, match="unreadable configuration"):
        read_lora(tmp_path / "l.safetensors", make_model())


def test_damaged_missing_and_disguised_files(tmp_path):
    path = write(tmp_path / "l.safetensors", STYLES["plain"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(LoraError, match="damaged or cut off"):
        read_lora(path, make_model())
    torch.save({"x": torch.ones(1)}, path)
    with pytest.raises(LoraError, match=r"damaged|no safetensors"):
        read_lora(path, make_model())
    with pytest.raises(LoraError, match="cannot be read"):
        read_lora(tmp_path / "none.safetensors", make_model())
