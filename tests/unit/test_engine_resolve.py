"""From request to recipe: defaults of the card, hashes of contents, and refusals before any model work."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import ones

from sakuga.engine.resolve import resolve
from sakuga.engine.task import check_task
from sakuga.errors import GeometryError, ImageError, LoraError, ModelError, RecipeError, WeightsError
from sakuga.media import image_sha256, load_image, write_mp4
from sakuga.recipe import ImageRef, LoraRequest, RenderRecipe, VideoRef, parse_request
from sakuga.wan import mini
from sakuga.wan.catalogue import card
from sakuga.wan.loading import locate
from sakuga.wan.weights import file_sha256

MINI = card("wan-mini")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = mini.random_weights(tmp_path_factory.mktemp("weights") / "mini", seed=3)
    (folder / "loras").mkdir()
    save_file({"x": ones(2)}, folder / "loras" / "fairy.safetensors")
    return folder


@pytest.fixture
def base(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    Image.fromarray(255 - noise).save(tmp_path / "end.png")
    return tmp_path


def test_what_is_left_open_comes_from_the_card(folder, base):
    recipe, inputs, loras = resolve(parse_request({"prompt": "a fairy", "seed": 4}), MINI, base, folder)
    assert (recipe.width, recipe.height, recipe.num_frames, recipe.fps) == (128, 128, 33, 15)
    assert (recipe.num_inference_steps, recipe.flow_shift) == (20, 5.0)
    assert recipe.guidance_scale == MINI.guidance_scale, "a figure that a new training may move"
    assert (recipe.precision, recipe.attention) == ("fp32", "auto")
    assert (dict(inputs.images), loras) == ({}, ())


def test_images_are_named_by_content_and_loras_by_file(folder, base):
    request = parse_request(
        {"prompt": "x", "input_image": "photo.png", "end_image": "end.png", "loras": "fairy:0.8", "seed": 1}
    )
    recipe, inputs, loras = resolve(request, MINI, base, folder)
    assert {ref.role: ref.sha256 for ref in recipe.images} == {
        "input_image": image_sha256(load_image(base / "photo.png")),
        "end_image": image_sha256(load_image(base / "end.png")),
    }
    assert set(inputs.images) == {"input_image", "end_image"}
    assert loras == inputs.lora_paths == (folder / "loras" / "fairy.safetensors",)
    assert recipe.loras[0].weight == 0.8
    Image.open(base / "photo.png").save(base / "copy.webp", lossless=True)
    again = resolve(request.model_copy(update={"input_image": "copy.webp"}), MINI, base, folder)[0]
    assert again.render_key == recipe.render_key, "the same pixels under another name are the same video"


def test_what_is_left_out_of_a_picture_is_noted_under_its_role(folder, base):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green")]
    frames[0].save(base / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    request = parse_request({"prompt": "x", "input_image": "photo.png", "end_image": "moving.webp", "seed": 1})
    inputs = resolve(request, MINI, base, folder)[1]
    assert inputs.notes == ("end_image: animated picture, the first of 2 frames is used",)


def test_a_missing_seed_is_drawn(folder, base):
    seeds = {resolve(parse_request({"prompt": "x"}), MINI, base, folder)[0].seed for _ in range(3)}
    assert len(seeds) == 3


def test_one_guidance_given_counts_for_both_experts(tmp_path, monkeypatch):
    a14b = card("wan2.2-t2v-a14b")
    found = type("Found", (), {"sha256": "ab" * 32, "lora_dir": None})
    monkeypatch.setattr(sys.modules["sakuga.engine.resolve"], "located", lambda *_: found)
    both = resolve(parse_request({"prompt": "x", "seed": 1}), a14b, tmp_path)[0]
    assert (both.guidance_scale, both.guidance_scale_2, both.boundary_ratio) == (4.0, 3.0, 0.875)
    one = resolve(parse_request({"prompt": "x", "seed": 1, "guidance_scale": 6}), a14b, tmp_path)[0]
    assert (one.guidance_scale, one.guidance_scale_2) == (6.0, None)


def test_a_lora_of_the_package_is_checked_against_its_card(folder, base, monkeypatch):
    package = shutil.copytree(folder, base / "package")
    names = [path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()]
    (package / "card.json").write_text(json.dumps({"sha256": {name: file_sha256(package / name) for name in names}}))
    monkeypatch.setattr(mini, "mini_dir", lambda: package)
    monkeypatch.setattr(sys.modules["sakuga.engine.resolve"], "located", lambda *_: locate(MINI, cache_dir=base))
    request = parse_request({"prompt": "x", "seed": 1, "loras": "fairy"})
    assert resolve(request, MINI, base)[0].loras[0].sha256 == file_sha256(package / "loras" / "fairy.safetensors")
    save_file({"x": 2 * ones(2)}, package / "loras" / "fairy.safetensors")
    with pytest.raises(LoraError, match=r"fairy\.safetensors is damaged: its sha256"):
        resolve(request, MINI, base)
    by_path = request.model_copy(update={"loras": (LoraRequest(path="package/loras/fairy.safetensors"),)})
    assert resolve(by_path, MINI, base)[0].loras, "a file that the user names may hold anything"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"width": 130}, GeometryError, "nearest: 128x128"),
        ({"num_frames": 34}, GeometryError, "nearest: 33"),
        ({"end_image": "end.png"}, RecipeError, "needs an input_image"),
        ({"control_video": "none.mp4"}, ModelError, "cannot take a control_video"),
        ({"reference_image": "photo.png"}, ModelError, "takes no reference_image"),
        ({"input_image": "none.png"}, ImageError, "none"),
        ({"loras": "elf"}, ModelError, "no LoRA"),
        ({"loras": "no/such.safetensors"}, LoraError, "does not exist"),
        ({"weights_sha256": "ab" * 32}, WeightsError, "as asked"),
        ({"guidance_scale_2": 2}, RecipeError, "two experts"),
        ({"denoising_strength": 0.5}, RecipeError, "give an input_video"),
    ],
)
def test_bad_requests(fields, error, message, folder, base):
    with pytest.raises(error, match=message):
        resolve(parse_request({"prompt": "x", "seed": 1, **fields}), MINI, base, folder)


def test_the_task_is_checked_before_files_are_read(folder, base):
    with pytest.raises(GeometryError):
        resolve(parse_request({"prompt": "x", "width": 130, "input_image": "none.png"}), MINI, base, folder)


def test_videos_are_read_and_named(folder, base):
    frames = np.zeros((33, 32, 32, 3), dtype=np.uint8)
    write_mp4(base / "in.mp4", frames, 15)
    fields = {"prompt": "x", "seed": 1, "input_video": "in.mp4", "denoising_strength": 0.5}
    recipe, inputs, _ = resolve(parse_request(fields), MINI, base, folder)
    assert inputs.videos["input_video"].shape == (33, 32, 32, 3)
    assert [ref.role for ref in recipe.videos] == ["input_video"]
    assert inputs.notes == ()
    write_mp4(base / "in.mp4", frames, 24)
    _, inputs, _ = resolve(parse_request(fields), MINI, base, folder)
    (note,) = inputs.notes
    assert note == (
        "input_video plays at 24 fps, the result at 15: its frames are taken one by one, so its speed changes"
    )


ANY = "0" * 64
CAMERA = "wan2.2-fun-a14b-control-camera"
SPEED = "wan2.1-1.3b-speedcontrol-v1"


@pytest.mark.parametrize(
    ("model", "images", "fields", "task"),
    [
        (CAMERA, ("input_image",), {"camera_direction": "Left"}, "camera"),
        (CAMERA, (), {"camera_direction": "Left"}, "away from an input_image"),
        (CAMERA, ("input_image", "end_image"), {"camera_direction": "Left"}, "no other image"),
        ("wan2.1-i2v-14b-480p", ("input_image",), {"camera_direction": "Left"}, "cannot take a camera_direction"),
        (SPEED, (), {"motion_bucket_id": 0}, "t2v"),
        (SPEED, (), {}, "t2v"),
        ("wan2.1-t2v-1.3b", (), {"motion_bucket_id": 0}, "for models with speed control"),
        ("wan2.1-t2v-1.3b", (), {"num_frames": 1}, "t2v"),
        ("wan2.1-flf2v-14b-720p", ("input_image", "end_image"), {"num_frames": 1}, "render 5 frames or more"),
    ],
)
def test_camera_speed_and_single_frames(model, images, fields, task):
    recipe = RenderRecipe(
        **{"model": model, "weights_sha256": ANY, "prompt": "x", "seed": 0, "width": 32, "height": 32},
        images=tuple(ImageRef(role=role, sha256=ANY) for role in images),
        **{"num_frames": 5, **fields},
    )
    if " " not in task:
        assert check_task(recipe, card(model)) == task
        return
    with pytest.raises((ModelError, RecipeError), match=task):
        check_task(recipe, card(model))


def test_camera_and_speed_of_a_request_are_in_its_recipe(base, monkeypatch):
    found = type("Found", (), {"sha256": "ab" * 32, "lora_dir": None})
    monkeypatch.setattr(sys.modules["sakuga.engine.resolve"], "located", lambda *_: found)
    fields = {"prompt": "x", "seed": 1, "input_image": "photo.png", "camera_direction": "RightUp"}
    recipe = resolve(parse_request(fields), card(CAMERA), base)[0]
    assert (recipe.camera_direction, recipe.camera_speed) == ("RightUp", 1 / 54)
    assert resolve(parse_request({"prompt": "x", "motion_bucket_id": 7}), card(SPEED), base)[0].motion_bucket_id == 7


@pytest.mark.parametrize(
    ("model", "images", "videos", "task"),
    [
        ("wan2.1-t2v-14b", (), (), "t2v"),
        ("wan2.1-t2v-14b", (), ("input_video",), "v2v"),
        ("wan2.1-i2v-14b-480p", ("input_image",), (), "i2v"),
        ("wan2.1-flf2v-14b-720p", ("input_image", "end_image"), (), "flf2v"),
        ("wan2.1-fun-control-14b", ("input_image",), ("control_video",), "control"),
        ("wan2.1-fun-v1.1-control-14b", ("reference_image",), ("control_video",), "control"),
        ("wan2.1-vace-14b", ("reference_image",), (), "vace"),
        ("wan2.1-vace-14b", (), ("vace_video", "vace_mask"), "vace"),
        ("wan2.1-i2v-14b-480p", (), (), "cannot render from text alone"),
        ("wan2.1-flf2v-14b-720p", ("input_image",), (), "cannot take an input_image"),
        ("wan2.1-t2v-14b", ("input_image",), (), "cannot take an input_image"),
        ("wan2.1-vace-14b", (), ("vace_mask",), "give both"),
        ("wan2.1-fun-v1.1-control-camera-14b", ("input_image",), (), "and a camera_direction"),
    ],
)
def test_the_task_follows_from_what_is_given(model, images, videos, task):
    recipe = RenderRecipe(
        model=model, weights_sha256=ANY, prompt="x", seed=0, width=32, height=32, num_frames=5,
        images=tuple(ImageRef(role=role, sha256=ANY) for role in images),
        videos=tuple(VideoRef(role=role, sha256=ANY) for role in videos),
    )  # fmt: skip
    if " " not in task:
        assert check_task(recipe, card(model)) == task
        return
    with pytest.raises((ModelError, RecipeError), match=task):
        check_task(recipe, card(model))
