"""A LoRA says the same in every key style, to our reader and to the programs that the styles belong to.

Run: pytest tests/unit/test_lora_convert.py
"""

import json
from collections.abc import Mapping

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sakuga.cli import main as cli
from sakuga.errors import LoraError, OutputError
from sakuga.recipe.values import EXPERTS
from sakuga.wan.catalogue import card, cards
from sakuga.wan.lora_convert import KEY_STYLES, card_shapes, convert_lora, describe_lora, diffusers_name, lora_path
from sakuga.wan.lora_file import Lora, fit_lora, read_lora
from sakuga.wan.passport import LoraPassport
from small_lora import FFN, TARGETS, WIDTH, Q, make_model, make_tensors

PASSPORT = LoraPassport(base_sha256="0" * 64, rank=4, alpha=6.0, targets=("q", "ffn.0"), expert=EXPERTS[0],
                        trigger_words=("fairy",), metrics={"psnr_db": 2.5})  # fmt: skip
CHANGES = {f"{target}.weight" for target in TARGETS}


def source(tmp_path, dtype=torch.float32, **extra: torch.Tensor) -> Lora:
    """A LoRA of scale 1.5 for one layer and of scale 0.3 and another rank for the other."""
    tensors = {}
    for key, tensor in make_tensors().items():
        target, kind = key.rsplit(".", 1)
        if target == FFN:
            tensor = tensor[:3] if kind == "A" else tensor[:, :3]
        tensors[f"{target}.lora_{kind}.weight"] = tensor.to(dtype).contiguous()
    alphas = {f"{Q}.alpha": torch.tensor(6.0), f"{FFN}.alpha": torch.tensor(0.9)}
    save_file(tensors | alphas | extra, tmp_path / "in.safetensors", PASSPORT.to_metadata())
    return read_lora(tmp_path / "in.safetensors", make_model())


def differences(lora: Lora) -> Mapping[str, torch.Tensor]:
    base = make_model().state_dict()
    return {name: change.of(base[name].float()) for name, change in lora.changes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("second", KEY_STYLES)
@pytest.mark.parametrize("first", KEY_STYLES)
def test_round_trip_through_two_styles(first, second, dtype, tmp_path):
    lora = source(tmp_path, dtype)
    there, back = tmp_path / "there", tmp_path / "back"
    convert_lora(lora, first, there)
    middle = read_lora(lora_path(there), make_model())
    convert_lora(middle, second, back)
    again = read_lora(lora_path(back), make_model())
    expected = differences(lora)
    for found in (middle, again):
        assert found.changes.keys() == CHANGES
        for name, change in differences(found).items():
            torch.testing.assert_close(change, expected[name], rtol=1e-5, atol=1e-5)
        assert LoraPassport.from_metadata(found.metadata) == PASSPORT
    assert [describe_lora(each)["style"] for each in (middle, again)] == [first, second]


def test_every_linear_layer_of_the_mini_goes_through_all_styles(tmp_path):
    shapes = card_shapes(card("wan-mini"))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and diffusers_name(name.removesuffix(".weight")):
            target = name.removesuffix(".weight")
            tensors[f"{target}.lora_A.weight"] = torch.randn(2, shape[1], generator=generator)
            tensors[f"{target}.lora_B.weight"] = torch.randn(shape[0], 2, generator=generator)
    save_file(tensors, tmp_path / "in.safetensors")
    lora = fit_lora(tmp_path / "in.safetensors", shapes)
    assert len(lora.changes) == 8 * 10 + 6  # all linear layers: of the blocks, of the embeddings and the head
    for style in KEY_STYLES:
        convert_lora(lora, style, tmp_path / style)
        found = fit_lora(lora_path(tmp_path / style), shapes)
        assert found.changes.keys() == lora.changes.keys()
        assert LoraPassport.from_metadata(found.metadata) == LoraPassport()
        lora = found
    for name, change in lora.changes.items():
        target = name.removesuffix(".weight")
        expected = tensors[f"{target}.lora_B.weight"] @ tensors[f"{target}.lora_A.weight"]
        torch.testing.assert_close(change.of(torch.zeros(shapes[name])), expected, rtol=1e-5, atol=1e-5)


def test_diffsynth_reads_its_style(tmp_path):
    from diffsynth.utils.lora.general import GeneralLoRALoader

    lora = source(tmp_path)
    [path] = convert_lora(lora, "diffsynth", tmp_path / "out.safetensors")
    model, base = make_model(), make_model().state_dict()
    GeneralLoRALoader().fuse_lora_to_base_model(model, load_file(path))
    for name, change in differences(lora).items():
        torch.testing.assert_close(model.state_dict()[name] - base[name], change, rtol=1e-5, atol=1e-5)


def test_peft_reads_its_style(tmp_path):
    import peft

    lora = source(tmp_path)
    convert_lora(lora, "peft", tmp_path / "out")
    base = make_model().state_dict()
    loaded = peft.PeftModel.from_pretrained(make_model(), str(tmp_path / "out")).merge_and_unload().state_dict()
    for name, change in differences(lora).items():
        torch.testing.assert_close(loaded[name] - base[name], change, rtol=1e-5, atol=1e-5)


def test_diffusers_names_are_those_of_its_model(tmp_path):
    from diffusers import WanTransformer3DModel
    from diffusers.loaders import WanLoraLoaderMixin

    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, ffn_dim=96, num_layers=2, text_dim=32, freq_dim=32,
            image_dim=1280, added_kv_proj_dim=48,
        )  # fmt: skip
    modules = {name for name, module in theirs.named_modules() if isinstance(module, torch.nn.Linear)}
    ours = [name.removesuffix(".weight") for name in card_shapes(card("wan2.1-i2v-14b-480p")) if "blocks.1." in name]
    linear = [name for name in ours if not name.endswith(("bias", "modulation")) and "norm" not in name]
    assert len(linear) == 12
    assert {diffusers_name(name) for name in linear} == {name for name in modules if name.startswith("blocks.1.")}
    [path] = convert_lora(source(tmp_path), "diffusers", tmp_path / "out.safetensors")
    read = WanLoraLoaderMixin.lora_state_dict(load_file(path))
    found = {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in read}
    assert found == {"blocks.0.attn1.to_q", "blocks.1.ffn.net.0.proj"} <= modules


def test_kohya_says_alpha(tmp_path):
    [path] = convert_lora(source(tmp_path), "kohya", tmp_path / "out.safetensors")
    with safe_open(path, framework="pt") as file:
        assert float(file.get_tensor("lora_unet_blocks_0_self_attn_q.alpha")) == 6.0
        assert float(file.get_tensor("lora_unet_blocks_1_ffn_0.alpha")) == pytest.approx(0.9)


def other_kinds() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    k = "blocks.1.ffn.0"
    loha = {f"{k}.hada_{w}_{side}": some(*((16, 2) if side == "a" else (2, 8))) for w in ("w1", "w2") for side in "ab"}
    return {
        "a LoHa": loha | {f"{k}.alpha": torch.tensor(3.0)},
        "a LoKr": {f"{k}.lokr_w1": some(4, 2), f"{k}.lokr_w2_a": some(4, 2), f"{k}.lokr_w2_b": some(2, 4),
                   f"{k}.alpha": torch.tensor(3.0)},
        "a DoRA": {f"{k}.lora_A.weight": some(2, 8), f"{k}.lora_B.weight": some(16, 2), f"{k}.alpha": torch.tensor(3.0),
                   f"{k}.lora_magnitude_vector": some(16).abs()},
        "a whole difference": {f"{k}.diff": some(16, 8), "blocks.0.norm3.diff_b": some(WIDTH)},
    }  # fmt: skip


@pytest.mark.parametrize("kind", other_kinds())
def test_what_only_kohya_can_say_is_refused_elsewhere(kind, tmp_path):
    save_file(other_kinds()[kind], tmp_path / "in.safetensors")
    lora = read_lora(tmp_path / "in.safetensors", make_model())
    for style in {*KEY_STYLES} - {"kohya"}:
        with pytest.raises(LoraError, match=kind):
            convert_lora(lora, style, tmp_path / style)
        assert not (tmp_path / style).exists()
    convert_lora(lora, "kohya", tmp_path / "kohya")
    found = differences(read_lora(tmp_path / "kohya", make_model()))
    for name, change in differences(lora).items():
        torch.testing.assert_close(found[name], change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["wan2.1-flf2v-14b-720p", "wan2.2-ti2v-5b", "wan2.1-fun-v1.1-control-camera-1.3b"])
def test_shapes_of_a_card_are_known_without_its_weights(name):
    one = next(each for each in cards() if each.name == name)
    assert sum(shape.numel() for shape in card_shapes(one).values()) == one.dit.num_params(one.in_dim)


def test_the_picture_embedding_has_no_name_in_diffusers(tmp_path):
    shapes = card_shapes(card("wan2.1-i2v-14b-480p"))
    name = "img_emb.proj.1"
    save_file({f"{name}.lora_A.weight": torch.ones(1, 1280), f"{name}.lora_B.weight": torch.ones(1280, 1)},
              tmp_path / "in.safetensors")  # fmt: skip
    lora = fit_lora(tmp_path / "in.safetensors", shapes)
    with pytest.raises(LoraError, match=r"img_emb\.proj\.1, for which diffusers' style has no name"):
        convert_lora(lora, "diffusers", tmp_path / "out")


def mini_lora(path, width: int = 192):
    save_file({f"{Q}.lora_A.weight": torch.ones(2, width), f"{Q}.lora_B.weight": torch.ones(width, 2)}, path,
              PASSPORT.to_metadata())  # fmt: skip
    return path


def test_commands_convert_and_show(tmp_path, capsys):
    path, out = mini_lora(tmp_path / "in.safetensors"), tmp_path / "folder"
    assert cli.run(["lora", "convert", str(path), str(out), "--to", "peft", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [
        str(out / name) for name in ("adapter_model.safetensors", "adapter_config.json")
    ]
    assert cli.run(["lora", "convert", str(path), str(out), "--to", "peft"]) == 3
    assert "give --force" in capsys.readouterr().err
    assert cli.run(["lora", "convert", str(path), str(out), "--to", "peft", "--force"]) == 0
    capsys.readouterr()
    assert cli.run(["lora", "show", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["lora"]
    assert (said["style"], said["ranks"], said["alphas"]) == ("peft", [2], [2.0])
    assert (said["targets"], said["layers"], said["kinds"]) == (["self_attn.q"], 1, ["LoRA"])
    assert said["passport"]["trigger_words"] == ["fairy"]
    assert cli.run(["lora", "show", str(path)]) == 0
    assert "passport trigger words" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "out", "code", "message"),
    [
        (lambda path: path.write_text("no LoRA"), "out", "E_LORA", "damaged"),
        (lambda path: None, "out", "E_LORA", "cannot be read"),
        (lambda path: save_file({"x": torch.ones(1)}, path), "out", "E_LORA", "another model"),
        (lambda path: mini_lora(path, width=1536), "out", "E_LORA", "another size"),
        (mini_lora, "in.safetensors", "E_OUTPUT", "is to be converted"),
        (mini_lora, "in.safetensors/out", "E_OUTPUT", "lies under, a file"),
    ],
    ids=["text", "missing", "no lora", "other model", "onto itself", "unwritable"],
)
def test_bad_input_is_one_sentence(make, out, code, message, tmp_path, capsys):
    path = tmp_path / "in.safetensors"
    make(path)
    assert cli.run(["lora", "convert", str(path), str(tmp_path / out), "--to", "kohya", "--force"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"error {code}: ")
    assert message in said
    assert said.count("\n") == 1


def test_an_unknown_style_is_refused_with_a_guess(tmp_path):
    with pytest.raises(LoraError, match="did you mean 'kohya'"):
        convert_lora(source(tmp_path), "koyha", tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        convert_lora(source(tmp_path), "kohya", mini_lora(tmp_path / "there"))
