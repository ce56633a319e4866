"""A LoRA's passport: kept in the file, and what a render takes from it."""

import pytest
from safetensors.torch import save_file
from torch import ones

from sakuga.engine.resolve import resolve
from sakuga.errors import LoraError, RecipeError
from sakuga.recipe import parse_request
from sakuga.wan import mini
from sakuga.wan.catalogue import card
from sakuga.wan.passport import KEY, LoraPassport, read_passport

MINI = card("wan-mini")
FAST = LoraPassport(
    num_inference_steps=4, flow_shift=8.0, rank=16, alpha=16.0, targets=("q", "k"), trigger_words=("sks",)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mini.random_weights(tmp_path_factory.mktemp("weights") / "mini", seed=3)


def lora(path, passport: LoraPassport | None = None, metadata=None):
    save_file({"x": ones(2)}, path, metadata=metadata or (passport.to_metadata() if passport else None))
    return path


def resolved(tmp_path, folder, *names: str, **fields):
    request = parse_request({"prompt": "x", "seed": 1, "loras": list(names), **fields})
    recipe, inputs, _ = resolve(request, MINI, tmp_path, folder)
    return recipe, inputs.notes


def test_what_is_written_is_read(tmp_path):
    passport = LoraPassport(expert="low", base_sha256="ab" * 32, metrics={"psnr_db": 21.5}, guidance_scale=2)
    assert read_passport(lora(tmp_path / "l.safetensors", passport)) == passport
    assert read_passport(lora(tmp_path / "l.safetensors")) == LoraPassport()
    assert "flow_shift" not in passport.to_metadata()[KEY]


def test_an_acceleration_lora_brings_its_schedule_and_no_guidance(tmp_path, folder):
    lora(tmp_path / "fast.safetensors", FAST)
    recipe, notes = resolved(tmp_path, folder, "fast.safetensors")
    assert (recipe.num_inference_steps, recipe.guidance_scale, recipe.flow_shift) == (4, 1.0, 8.0)
    assert "num_inference_steps is 4, as LoRA fast.safetensors was distilled for" in notes
    assert len(notes) == 3


def test_what_the_request_says_wins(tmp_path, folder):
    lora(tmp_path / "fast.safetensors", FAST)
    recipe, notes = resolved(tmp_path, folder, "fast.safetensors", num_inference_steps=9, guidance_scale=3.0)
    assert (recipe.num_inference_steps, recipe.guidance_scale, recipe.flow_shift) == (9, 3.0, 8.0)
    assert len(notes) == 1


def test_a_style_lora_changes_no_schedule(tmp_path, folder):
    lora(tmp_path / "style.safetensors", LoraPassport(rank=8))
    recipe, notes = resolved(tmp_path, folder, "style.safetensors")
    assert (recipe.num_inference_steps, recipe.guidance_scale) == (MINI.num_inference_steps, MINI.guidance_scale)
    assert notes == ()


def test_two_schedules_are_refused(tmp_path, folder):
    lora(tmp_path / "fast.safetensors", FAST)
    lora(tmp_path / "faster.safetensors", LoraPassport(num_inference_steps=2))
    with pytest.raises(RecipeError, match=r"faster\.safetensors wants num_inference_steps 2 and another LoRA 4; give"):
        resolved(tmp_path, folder, "fast.safetensors", "faster.safetensors")
    recipe, _ = resolved(tmp_path, folder, "fast.safetensors", "faster.safetensors", num_inference_steps=3)
    assert recipe.num_inference_steps == 3


def test_another_base_is_said(tmp_path, folder):
    lora(tmp_path / "l.safetensors", LoraPassport(base_sha256="cd" * 32))
    assert resolved(tmp_path, folder, "l.safetensors")[1] == (
        "LoRA l.safetensors was trained on other weights (cdcdcdcdcdcd)",
    )


def test_an_expert_needs_a_model_with_two(tmp_path, folder):
    lora(tmp_path / "l.safetensors", LoraPassport(expert="high"))
    with pytest.raises(RecipeError, match="expert is for models with two; wan-mini has one"):
        resolved(tmp_path, folder, "l.safetensors")


@pytest.mark.parametrize(
    ("text", "expert", "weight"),
    [("l:0.8:high", "high", 0.8), ("l:low", "low", 1.0), ("l:0.5", None, 0.5), ("l", None, 1.0)],
)
def test_the_short_spelling_of_an_expert(text, expert, weight):
    (request,) = parse_request({"prompt": "x", "loras": [text]}).loras
    assert (request.name, request.expert, request.weight) == ("l", expert, weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "unknown field|cannot be read"),
        ('{"colour": 1}', "unknown field 'colour'; a newer Sakuga"),
        ('{"num_inference_steps": 0}', "num_inference_steps"),
        ('{"guidance_scale": "NaN"}', "guidance_scale"),
        ('{"expert": "medium"}', "expert"),
    ],
)
def test_a_bad_passport_is_refused(text, message, tmp_path):
    lora(tmp_path / "l.safetensors", metadata={KEY: text})
    with pytest.raises(LoraError, match=message):
        read_passport(tmp_path / "l.safetensors")


def test_a_damaged_file(tmp_path):
    (tmp_path / "l.safetensors").write_bytes(b"no")
    with pytest.raises(LoraError, match="damaged or no safetensors"):
        read_passport(tmp_path / "l.safetensors")
