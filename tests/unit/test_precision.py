"""Quantized weights: which layers, how close, and what is refused."""

import pytest
import torch

from sakuga.engine import LocalEngine, RenderInputs
from sakuga.errors import PrecisionError
from sakuga.quality import psnr
from sakuga.recipe import PRECISIONS as NAMES
from sakuga.recipe import LoraRef
from sakuga.wan import mini
from sakuga.wan.cards import KEPT_LAYERS
from sakuga.wan.catalogue import card
from sakuga.wan.loading import load_model, locate
from sakuga.wan.precision import PRECISIONS, check_precision, is_quantized
from small_lora import lora_for
from stock_pipeline import picture, render

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = mini.random_weights(tmp_path_factory.mktemp("weights") / "mini", seed=7)
    return locate(card("wan-mini"), folder, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def frames(weights):
    """Of the same render in bf16."""
    model = load_model(weights, precision="bf16")
    return render(model, RenderInputs(images={"input_image": picture(4)}), precision="bf16")[1]


def test_a_recipe_takes_the_names_that_have_a_meaning():
    assert {*NAMES} == {*PRECISIONS}


@pytest.mark.parametrize("name", ["int8", "int8-dynamic", "fp8"])
def test_linear_layers_of_the_blocks_are_quantized_and_the_picture_stays(name, weights, frames):
    model = load_model(weights, precision=name)
    dit = model.pipe.dit
    quantized = {name for name, parameter in dit.named_parameters() if is_quantized(parameter)}
    linear = {f"{name}.weight" for name, module in dit.named_modules() if isinstance(module, torch.nn.Linear)}
    assert quantized == {name for name in linear if name.startswith("blocks.")}
    assert {f"{name}.weight" for name in KEPT_LAYERS} >= linear - quantized
    assert dit.head.head.weight.dtype == torch.bfloat16
    recipe, ours = render(model, RenderInputs(images={"input_image": picture(4)}), precision=name)
    assert recipe.precision == name
    assert 35 < psnr(frames, ours).pooled_db < 100, "close to bf16, and not bf16"


def test_quantized_weights_take_a_lora_beside_them(weights, tmp_path):
    found = {}
    for name in ("bf16", "int8"):
        model = load_model(weights, precision=name)
        path, sha256 = lora_for(model.pipe.dit, tmp_path / f"{name}.safetensors")
        inputs, loras = RenderInputs(lora_paths=(path,)), (LoraRef(sha256=sha256, weight=0.5),)
        plain = render(model, precision=name)[1]
        found[name] = render(model, inputs, precision=name, loras=loras)[1], plain
    assert psnr(*found["bf16"]).pooled_db < psnr(found["bf16"][0], found["int8"][0]).pooled_db - 5


def test_what_this_machine_cannot_compute_in_is_refused(monkeypatch):
    with pytest.raises(PrecisionError, match="take fp8 or int8-dynamic"):
        LocalEngine.load("wan-mini", precision="fp8-dynamic")
    assert check_precision("fp8", CPU).dtype == torch.bfloat16
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PrecisionError, match=r"pip install 'sakuga\[quant\]'"):
        check_precision("int8", CPU)
    check_precision("bf16", CPU)
