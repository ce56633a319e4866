"""The recipe, its key, and the form in which users write it."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sakuga.errors import GeometryError, ImageError, InputError, PromptError, RecipeError, VideoError
from sakuga.recipe import (
    MAX_SEED,
    ImageRef,
    LoraRef,
    RenderRecipe,
    StepCache,
    Tiling,
    VideoRef,
    parse_request,
    seed_from_content,
)

HASH_A, HASH_B = "a" * 64, "b" * 64


def recipe(**changes) -> RenderRecipe:
    return RenderRecipe(**{"model": "wan-mini", "weights_sha256": HASH_A, "prompt": "a fairy", "seed": 7, **changes})


FULL = recipe(
    images=(ImageRef(role="input_image", sha256=HASH_A), ImageRef(role="end_image", sha256=HASH_B)),
    videos=(VideoRef(role="control_video", sha256=HASH_A),),
    loras=(LoraRef(sha256=HASH_A, weight=0.8), LoraRef(sha256=HASH_B)),
    step_cache=StepCache(kind="teacache", threshold_rel_l1=0.1),
    tiling=Tiling(),
    guidance_scale_2=3.5,
    boundary_ratio=0.9,
    camera_direction="LeftUp",
    camera_speed=0.01,
    motion_bucket_id=100,
)


@pytest.mark.parametrize("original", [recipe(), FULL], ids=["plain", "full"])
def test_a_recipe_survives_json(original):
    back = RenderRecipe.from_dict(json.loads(json.dumps(original.as_dict())))
    assert back == original
    assert back.render_key == original.render_key


def test_the_key_is_the_same_in_another_process():
    code = (
        "from sakuga.recipe import RenderRecipe; import json, sys;"
        "print(RenderRecipe.from_dict(json.loads(sys.argv[1])).render_key)"
    )
    # Another hash seed would show a dependence on the order of a set or a dict.
    command = [sys.executable, "-c", code, json.dumps(FULL.as_dict())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "123"})
    assert done.stdout.strip() == FULL.render_key


OTHER_VALUES = {
    "model": "wan2.1-t2v-1.3b",
    "weights_sha256": HASH_B,
    "prompt": "a fairy.",
    "negative_prompt": "blurred",
    "width": 144,
    "height": 144,
    "num_frames": 37,
    "fps": 16,
    "num_inference_steps": 21,
    "guidance_scale": 5.5,
    "guidance_scale_2": 5.0,
    "boundary_ratio": 0.5,
    "flow_shift": 3.0,
    "seed": 8,
    "denoising_strength": 0.9,
    "camera_direction": "Left",
    "motion_bucket_id": 50,
    "images": (ImageRef(role="input_image", sha256=HASH_A),),
    "videos": (VideoRef(role="input_video", sha256=HASH_A),),
    "loras": (LoraRef(sha256=HASH_A),),
    "step_cache": StepCache(kind="teacache", threshold_rel_l1=0.1),
    "precision": "bf16",
    "attention": "sdpa",
    "tiling": Tiling(),
    "numerics_version": 99,
}


def test_every_field_changes_the_key():
    assert {*OTHER_VALUES, "camera_speed"} == {field.name for field in dataclasses.fields(RenderRecipe)}
    keys = {name: recipe(**{name: value}).render_key for name, value in OTHER_VALUES.items()}
    keys["camera_speed"] = recipe(camera_direction="Left", camera_speed=0.1).render_key
    assert len(set(keys.values()) | {recipe().render_key}) == len(keys) + 1


def test_spellings_of_one_number_share_a_key():
    assert recipe(guidance_scale=5, width=128.0).render_key == recipe(guidance_scale=5.0, width=128).render_key
    assert recipe(camera_direction="Up").render_key == recipe(camera_direction="Up", camera_speed=1 / 54).render_key
    assert recipe(guidance_scale=-0.0).render_key == recipe(guidance_scale=0).render_key


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"prompt": ""}, PromptError, "empty"),
        ({"prompt": " \n\t"}, PromptError, "empty"),
        ({"prompt": "x" * 32_001}, PromptError, "32001 characters; at most 32000"),
        ({"prompt": "a \x1b[31mred\x1b[0m fairy"}, PromptError, "U+001B at position 2"),
        ({"prompt": "a\x00b"}, PromptError, "U+0000"),
        ({"prompt": "a\x9bb"}, PromptError, "U+009B"),
        ({"camera_direction": "left"}, RecipeError, "camera_direction is 'left'; did you mean 'Left'"),
        ({"camera_direction": "RigthUp"}, RecipeError, "did you mean 'RightUp'"),
        ({"camera_direction": "sideways"}, RecipeError, "it must be one of Left, Right, Up"),
        ({"camera_direction": 3}, RecipeError, "camera_direction is 3"),
        ({"camera_speed": 0.1}, RecipeError, "give a camera_direction too"),
        ({"camera_direction": "Left", "camera_speed": 2}, RecipeError, "a number from 0.0 to 1.0"),
        ({"motion_bucket_id": 101}, RecipeError, "a whole number from 0 to 100"),
        ({"motion_bucket_id": 0.5}, RecipeError, "a whole number from 0 to 100"),
        ({"prompt": "half of a pair \ud83e"}, PromptError, "U+D83E"),
        ({"negative_prompt": "\x07"}, PromptError, "negative_prompt"),
        ({"prompt": 3}, PromptError, "text"),
        ({"width": 0}, GeometryError, "from 16 to 4096"),
        ({"width": -16}, GeometryError, "-16"),
        ({"height": 99_999}, GeometryError, "from 16 to 4096"),
        ({"width": 128.5}, GeometryError, "whole number"),
        ({"width": "128"}, GeometryError, "text"),
        ({"num_frames": 0}, GeometryError, "num_frames is 0"),
        ({"num_frames": -3}, GeometryError, "num_frames is -3"),
        ({"num_frames": 10**6}, GeometryError, "10001"),
        ({"width": 4096, "height": 4096, "num_frames": 1001}, GeometryError, "at most 128 frames"),
        ({"num_inference_steps": 0}, RecipeError, "from 1 to 1000"),
        ({"num_inference_steps": 4.5}, RecipeError, "whole number"),
        ({"num_inference_steps": True}, RecipeError, "true or false"),
        ({"seed": -1}, RecipeError, "seed is -1"),
        ({"seed": 2**63}, RecipeError, str(MAX_SEED)),
        ({"seed": None}, RecipeError, "null"),
        ({"guidance_scale": math.nan}, RecipeError, "nan"),
        ({"guidance_scale": math.inf}, RecipeError, "inf"),
        ({"guidance_scale": -1}, RecipeError, "-1"),
        ({"flow_shift": 0}, RecipeError, "flow_shift"),
        ({"fps": 0}, RecipeError, "fps"),
        ({"denoising_strength": 0}, RecipeError, "denoising_strength"),
        ({"precision": "fp23"}, RecipeError, "did you mean"),
        ({"attention": "sgae"}, RecipeError, "did you mean 'sage'"),
        ({"model": "../weights"}, RecipeError, "model"),
        ({"weights_sha256": "A" * 64}, RecipeError, "sha256"),
        ({"loras": (LoraRef(sha256=HASH_A), LoraRef(sha256=HASH_A, weight=2))}, RecipeError, "twice"),
        ({"images": (ImageRef(role="end_image", sha256=HASH_A),) * 2}, RecipeError, "twice"),
    ],
)
def test_values_that_no_model_can_take(changes, error, part):
    with pytest.raises(error) as caught:
        recipe(**changes)
    assert part in caught.value.message


def test_limits_themselves_are_legal():
    recipe(seed=0, prompt="x" * 32_000, negative_prompt="", num_inference_steps=1)
    recipe(seed=2**63 - 1, prompt="two\nlines\tand a tab, 妖精 🧚🏽‍♀️", num_inference_steps=1000)


@pytest.mark.parametrize("value", [{"role": "first_image", "sha256": HASH_A}, {"role": "input_image", "sha256": ""}])
def test_bad_references(value):
    with pytest.raises(RecipeError):
        ImageRef(**value)


@pytest.mark.parametrize("weight", [math.nan, -10, "1"])
def test_lora_weights_out_of_range(weight):
    with pytest.raises(RecipeError, match="weight"):
        LoraRef(sha256=HASH_A, weight=weight)


def test_from_dict_is_strict():
    plain = FULL.as_dict()
    with pytest.raises(RecipeError, match="did you mean 'width'"):
        RenderRecipe.from_dict({**plain, "widht": 128})
    with pytest.raises(RecipeError, match="lacks the field 'seed'"):
        RenderRecipe.from_dict({name: value for name, value in plain.items() if name != "seed"})
    with pytest.raises(RecipeError, match=r"images\[0\]"):
        RenderRecipe.from_dict({**plain, "images": ["x.png"]})
    with pytest.raises(RecipeError, match=r"loras .* must be a list"):
        RenderRecipe.from_dict({**plain, "loras": "fairy"})


def test_a_request_names_the_nearest_attention():
    with pytest.raises(RecipeError, match="attention is 'spda'; did you mean 'sdpa'"):
        parse_request({"prompt": "x", "attention": "spda"})


def test_a_request_names_the_nearest_field():
    with pytest.raises(RecipeError, match="'widht'; did you mean 'width'"):
        parse_request({"prompt": "x", "widht": 128})


def test_a_request_with_ten_thousand_fields_gets_a_short_answer():
    with pytest.raises(RecipeError, match="and 9997 more") as caught:
        parse_request({"prompt": "x", **{f"column{n}": n for n in range(10_000)}})
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("fields", "error", "part"),
    [
        ({"width": 0}, GeometryError, "width is 0"),
        ({"num_frames": "33"}, GeometryError, "text"),
        ({"seed": -1}, RecipeError, "seed is -1"),
        ({"seed": 2**63}, RecipeError, "seed"),
        ({"guidance_scale": math.nan}, RecipeError, "nan"),
        ({"prompt": ["a"]}, PromptError, "a list"),
        ({"prompt": ""}, PromptError, "empty"),
        ({"input_image": 5}, ImageError, "path"),
        ({"input_image": "  "}, ImageError, "path"),
        ({"input_image": "a\0.png"}, ImageError, "U+0000"),
        ({"end_image": "https://example.com/a.png"}, ImageError, "nothing is fetched"),
        ({"control_video": {}}, VideoError, "path"),
        ({"id": "../../etc/passwd"}, RecipeError, "id is"),
        ({"id": "con\r\n"}, RecipeError, "id is"),
        ({"id": ".hidden"}, RecipeError, "id is"),
        ({"id": "x" * 101}, RecipeError, "id is"),
        ({"loras": "fairy:strong"}, RecipeError, "weight is no number"),
        ({"loras": [{"weight": 1}]}, RecipeError, "a name or a path"),
        ({"loras": ["fairy", "fairy:0.5"]}, RecipeError, "twice"),
        ({"loras": "fairy:nan"}, RecipeError, "weight is nan"),
        ({"loras": [f"lora{n}" for n in range(100)]}, RecipeError, "at most 16"),
        ({"loras": 5}, RecipeError, "loras"),
        ({"tiling": {"tile_height": 0}}, RecipeError, "tile_height"),
        ({"step_cache": {"kind": "teacache"}}, RecipeError, "threshold_rel_l1"),
        ({"step_cache": "teacache"}, RecipeError, "write KIND:THRESHOLD"),
        ({"step_cache": "teacache:x"}, RecipeError, "write KIND:THRESHOLD"),
        ({"step_cache": "teacache:0.1:2:3"}, RecipeError, "write KIND:THRESHOLD"),
        ({"step_cache": "teacache:nan"}, RecipeError, "above 0, at most 10"),
        ({"model": ""}, RecipeError, "model"),
    ],
)
def test_requests_that_are_refused(fields, error, part):
    with pytest.raises(error) as caught:
        parse_request({"prompt": "a fairy", **fields})
    assert part in caught.value.message
    assert "\n" not in caught.value.message


def test_several_faults_are_told_at_once():
    with pytest.raises(PromptError) as caught:
        parse_request({"prompt": "", "width": 0, "seed": -1})
    assert all(part in caught.value.message for part in ("prompt", "width is 0", "seed is -1"))


def test_defaults_fill_what_a_row_leaves_out():
    request = parse_request({"prompt": "x", "width": None, "fps": 10}, {"width": 256, "fps": 15, "height": None})
    assert (request.width, request.fps, request.height) == (256, 10, None)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("fairy", [("fairy", None, 1.0)]),
        ("fairy:0.8", [("fairy", None, 0.8)]),
        (["fairy", {"path": "a.safetensors", "weight": 2}], [("fairy", None, 1.0), (None, "a.safetensors", 2.0)]),
        ("my/loras/glow.safetensors:0.5", [(None, "my/loras/glow.safetensors", 0.5)]),
    ],
)
def test_spellings_of_loras(spelling, expected):
    loras = parse_request({"prompt": "x", "loras": spelling}).loras
    assert [(lora.name, lora.path, lora.weight) for lora in loras] == expected


def test_seeds_follow_from_the_content_alone():
    row = {"prompt": "a fairy", "guidance_scale": 5, "id": "one", "input_image": "a/x.png", "loras": "fairy"}
    moved = {"input_image": "b/x.png", "guidance_scale": 5.0, "prompt": "a fairy", "id": "two", "seed": None}
    assert seed_from_content(row) == seed_from_content(moved)
    assert seed_from_content(row) != seed_from_content({**row, "prompt": "a fairy."})
    assert seed_from_content(row) != seed_from_content({**row, "guidance_scale": 5.5})
    assert recipe(seed=seed_from_content(row)).seed == seed_from_content(row)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELD_NAMES = st.sampled_from([*OTHER_VALUES, "id", "input_image", "vace_mask"])


# The first draw of text builds Unicode tables, which took 1.1 s: too slow for hypothesis, on a busy machine.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fields=st.dictionaries(FIELD_NAMES, JSON_VALUES, max_size=4))
def test_whatever_is_written_is_taken_or_refused_with_a_sentence(fields):
    try:
        request = parse_request({"prompt": "a fairy", **fields})
    except InputError as error:
        message = error.message
    else:
        message = f"taken with seed {seed_from_content(request.model_dump())}"
    assert message.isprintable()


def test_the_short_spelling_of_a_step_cache():
    short = parse_request({"prompt": "x", "step_cache": "forecast:0.05:10"}).step_cache
    assert short == StepCache(kind="forecast", threshold_rel_l1=0.05, refresh_every=10)
    assert parse_request({"prompt": "x", "step_cache": "teacache:0.1"}).step_cache.refresh_every is None
