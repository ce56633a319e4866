"""The demo's manifest: what the mission asks for, prompts that fit their pictures, pictures that nobody fetches."""

import json
import socket

import numpy as np
import pytest
from PIL import Image

from sakuga.farm.demo.inputs import DRAWINGS, KINDS, PHOTO, manifest_text, write_demo
from sakuga.recipe.manifest import read_manifest
from sakuga.synth import HELD_OUT_SEED, make_sample


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return read_manifest(write_demo(tmp_path_factory.mktemp("demo")))


def test_six_rows_of_every_kind_half_of_them_fairies(demo):
    assert demo.errors == ()
    rows = {row.id: row.request for row in demo.rows}
    assert list(rows) == list(KINDS)
    fairies = [row for row in rows.values() if [lora.name for lora in row.loras] == ["fairy"]]
    assert len(fairies) * 2 >= len(rows) == 6
    inputs = [(row.input_image is not None, row.end_image is not None) for row in rows.values()]
    assert inputs.count((False, False)) == 2
    assert inputs.count((True, True)) == 1
    assert sum(row.input_image in DRAWINGS and row.end_image is None for row in rows.values()) == 2
    assert [row.loras[0].name for row in rows.values() if row.input_image == PHOTO] == ["fairy"]
    assert all(row.seed is not None for row in rows.values())


def test_pictures_are_there_and_drawn_from_seeds_that_no_model_saw(demo):
    named = {path for row in demo.rows for path in (row.request.input_image, row.request.end_image) if path}
    assert named == {*DRAWINGS, PHOTO}
    for name in named:
        with Image.open(demo.base_dir / name) as image:
            assert image.width == image.height >= 128
    assert all(drawing.seed >= HELD_OUT_SEED for drawing in DRAWINGS.values())


def test_prompts_describe_their_pictures(demo):
    for row in demo.rows:
        if row.request.input_image in DRAWINGS:
            seed = DRAWINGS[row.request.input_image].seed
            world = "fairy" if row.request.loras else "live"
            assert row.request.prompt in make_sample(seed, world, num_frames=1).prompts


def test_a_second_demo_writes_the_same_pixels_without_network(demo, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    before = {name: np.asarray(Image.open(demo.base_dir / name)) for name in (*DRAWINGS, PHOTO)}
    again = tmp_path / "again"
    again.mkdir()
    write_demo(again)
    for name, pixels in before.items():
        assert np.array_equal(pixels, np.asarray(Image.open(again / name)))
    assert [json.loads(line)["id"] for line in manifest_text().splitlines()] == list(KINDS)
