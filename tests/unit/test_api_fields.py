"""From what was sent to what is wanted."""

import pytest

from sakuga.api.body import Sent
from sakuga.api.fields import KNOWN, RECIPE_FIELDS, seconds_text, wish_of
from sakuga.errors import InputError, RecipeError


def wish(is_form: bool = False, **fields: object):
    return wish_of(Sent(fields=fields, is_form=is_form))


def test_a_forms_text_becomes_what_the_fields_hold():
    told = wish(
        is_form=True, prompt="12", seed="7", guidance_scale="1.5", size="64x32", deadline_s="60", loras='["fairy:0.5"]',
        tiling='{"tile_height": 8}', step_cache="forecast:0.05", seconds="4",
    )  # fmt: skip
    assert told.recipe == {
        "prompt": "12", "seed": 7, "guidance_scale": 1.5, "width": 64, "height": 32, "loras": ["fairy:0.5"],
        "tiling": {"tile_height": 8}, "step_cache": "forecast:0.05",
    }  # fmt: skip
    assert (told.deadline_s, told.seconds) == (60.0, 4.0)


@pytest.mark.parametrize("text", ["1_0", "0x10", "٣", "", "1e", "--1", "9" * 50])
def test_text_that_is_no_number_stays_text(text):
    assert wish(is_form=True, prompt="x", seed=text).recipe["seed"] == text


def test_json_keeps_its_types():
    assert wish(prompt="x", seed="7").recipe["seed"] == "7", "parse_request refuses it"


def test_extra_params_stand_beside_the_others():
    told = wish(is_form=True, prompt="x", extra_params='{"fps": 8, "priority": "batch"}', size="32x32")
    assert (told.recipe["fps"], told.priority) == (8, "batch")


def test_null_is_as_if_it_were_not_there():
    assert wish(prompt="x", seconds=None, size=None, input_reference=None).recipe == {"prompt": "x"}


@pytest.mark.parametrize(
    "field", ["input_reference", "input_reference[image_url]", "image_url", "input_image"], ids=str
)
def test_every_way_to_give_an_address(field):
    assert wish(prompt="x", **{field: "data:image/png;base64,"}).addresses == {"input_image": "data:image/png;base64,"}


def test_an_object_with_an_address():
    assert wish(prompt="x", input_reference={"image_url": "data:,"}).addresses == {"input_image": "data:,"}
    for value in ({}, {"image_url": "data:,", "detail": "low"}, {"image_url": 3}, 3, ["data:,"]):
        with pytest.raises(RecipeError):
            wish(prompt="x", input_reference=value)
    with pytest.raises(InputError, match="file_id"):
        wish(prompt="x", **{"input_reference[file_id]": "file-1"})


def test_the_fields_of_files_are_no_fields_of_the_recipe(tmp_path):
    assert "input_image" not in RECIPE_FIELDS and "id" not in KNOWN
    told = wish_of(Sent(fields={"prompt": "x"}, files={"input_reference": tmp_path, "end_image": tmp_path}))
    assert told.files == {"input_image": tmp_path, "end_image": tmp_path}
    with pytest.raises(RecipeError, match="twice"):
        wish_of(Sent(fields={"prompt": "x", "image_url": "data:,"}, files={"input_image": tmp_path}))


def test_a_fingerprint_is_of_the_request_and_not_of_its_form(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    one = Sent(fields={"prompt": "x", "size": "1x1"}, files={"input_image": tmp_path / "a"})
    same = Sent(fields={"size": "1x1", "prompt": "x"}, files={"input_image": tmp_path / "a"})
    other = Sent(fields={"size": "1x1", "prompt": "x"}, files={"input_image": tmp_path / "b"})
    assert one.fingerprint("videos") == same.fingerprint("videos")
    assert len({each.fingerprint(of) for each in (one, other) for of in ("videos", "remix")}) == 4


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.0, "4"), (2.2, "2.2"), (33 / 15, "2.2"), (1 / 3, "0.333"), (10.0, "10")]
)
def test_seconds_as_text(seconds, text):
    assert seconds_text(seconds) == text
