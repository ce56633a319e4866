"""What the cache holds of a sample: checked on the embedded model and on tiny ones of other families."""

import dataclasses
import os
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from PIL import Image

from sakuga.errors import DataError, ModelError
from sakuga.media import write_mp4
from sakuga.settings import from_environment
from sakuga.training.clips import ClipSpec, cut, plan_clip
from sakuga.training.encoding import CONDITIONING, SampleEncoder, choose_task, key_of_text, layer_shares, trimmed
from sakuga.training.layouts import SourceSample
from sakuga.training.prepared import LAYERS, VIDEO_TENSORS, LatentCache
from sakuga.wan.catalogue import card
from sakuga.wan.loading import load_model, locate
from tiny_wan import tiny_control, tiny_flf2v, tiny_i2v, tiny_vace

SPEC = ClipSpec(width=32, height=32, num_frames=5, fps=15)


@pytest.fixture(scope="module")
def mini():
    return load_model(locate(card("wan-mini"), cache_dir=from_environment().cache_dir), stages=("encode",))


@pytest.fixture
def cache(tmp_path):
    return LatentCache(tmp_path / "cache", tmp_path / "local")


@pytest.fixture
def sample(tmp_path):
    rng = np.random.default_rng(0)
    home = tmp_path / "data"
    home.mkdir()
    for name in ("video", "control", "vace", "mask"):
        write_mp4(home / f"{name}.mp4", rng.integers(0, 255, (5, 32, 32, 3), np.uint8), 15)
    for name in ("first", "other"):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(home / f"{name}.png")
    layers = np.zeros((5, 32, 32), np.uint8)
    layers[:, 8:24, 8:24] = 1
    np.savez_compressed(home / "layers.npz", layers_THW=layers)
    return SourceSample(
        name="video.mp4", target=home / "video.mp4", prompt="she dances", layers=home / "layers.npz",
        images={"input_image": home / "first.png", "end_image": home / "other.png"},
        videos={name: home / f"{file}.mp4" for name, file in
                (("control_video", "control"), ("vace_video", "vace"), ("vace_mask", "mask"))},
    )  # fmt: skip


def tensors(model, sample, task, cache, spec=SPEC) -> dict[str, torch.Tensor]:
    return cache.get("videos", SampleEncoder(model, cache, spec, task).encode(sample).video_key)


def test_target_image_and_layers(mini, sample, cache):
    found = tensors(mini, sample, "i2v", cache)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()} == {
        "latents_CThw": ((16, 2, 4, 4), torch.float16),
        "y_CThw": ((20, 2, 4, 4), torch.float16),
        "layers_GThw": ((3, 2, 4, 4), torch.uint8),
    }
    assert found["y_CThw"][:4].sum() == 4 * 16  # the first frame alone is known
    clip = cut(sample, plan_clip(sample, SPEC), SPEC)
    video = torch.from_numpy(clip.frames_THWC).permute(3, 0, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        exact = mini.pipe.vae.encode([video], device="cpu")[0]
    assert (found["latents_CThw"] - exact).norm() / exact.norm() < 0.03  # 0.010 on clips of 128x128, here on noise


def test_a_model_in_bf16_keeps_its_numbers(sample, cache):
    found = locate(card("wan-mini"), cache_dir=from_environment().cache_dir)
    latents = tensors(load_model(found, precision="bf16", stages=("encode",)), sample, "i2v", cache)["latents_CThw"]
    assert latents.dtype == torch.bfloat16


def test_without_an_image_the_target_gives_it(mini, sample, cache):
    bare = dataclasses.replace(sample, images={})
    first, both = tensors(mini, bare, "i2v", cache)["y_CThw"], tensors(mini, bare, "flf2v", cache)["y_CThw"]
    assert first[:4].sum() == 4 * 16 and both[:4].sum() == 5 * 16
    assert not torch.equal(first[4:, :1], tensors(mini, sample, "i2v", cache)["y_CThw"][4:, :1])


def test_text_alone_is_conditioned_on_grey(mini, sample, cache):
    y = tensors(mini, sample, "t2v", cache)["y_CThw"]
    assert y[:4].sum() == 0 and y[4:].any()


def test_a_still_sees_its_text_alone(mini, sample, cache):
    still = SourceSample(name="first.png", target=sample.images["input_image"], prompt="a star")
    encoded = SampleEncoder(mini, cache, SPEC, "i2v").encode(still)
    assert encoded.num_frames == 1 and "a still without an input_image" in encoded.notes[-1]
    found = cache.get("videos", encoded.video_key)
    assert found["latents_CThw"].shape == (16, 1, 4, 4) and found["y_CThw"][:4].sum() == 0


@pytest.mark.parametrize(
    ("model", "task", "shapes"),
    [
        (tiny_i2v, "i2v", {"y_CThw": (20, 2, 4, 4), "clip_feature_LD": (257, 1280)}),
        (tiny_flf2v, "flf2v", {"y_CThw": (20, 2, 4, 4), "clip_feature_LD": (514, 1280)}),
        (tiny_control, "control", {"y_CThw": (32, 2, 4, 4), "clip_feature_LD": (257, 1280)}),
        (tiny_vace, "vace", {"vace_context_CThw": (96, 2, 4, 4)}),
    ],
)
def test_conditioning_of_every_task(model, task, shapes, sample, cache, tokenizer_dir, one_thread):
    found = tensors(model(tokenizer_dir), sample, task, cache)
    assert set(found) <= set(VIDEO_TENSORS)
    given = {name: tuple(tensor.shape) for name, tensor in found.items() if name in CONDITIONING}
    assert given == shapes


def test_a_reference_image_of_vace_goes_in_front(sample, cache, tokenizer_dir, one_thread):
    model = tiny_vace(tokenizer_dir)
    plain = tensors(model, sample, "vace", cache)
    referred = dataclasses.replace(sample, images={"reference_image": sample.images["input_image"]})
    found = tensors(model, referred, "vace", cache)
    assert found["latents_CThw"].shape == (16, 3, 4, 4) and found["vace_context_CThw"].shape == (96, 3, 4, 4)
    assert torch.equal(found["latents_CThw"][:, 1:], plain["latents_CThw"])
    assert torch.equal(found["latents_CThw"][:, :1], found["vace_context_CThw"][:16, :1])
    assert found["layers_GThw"].shape == (3, 3, 4, 4) and not found["layers_GThw"][:, 0].any()


def test_what_a_task_needs(mini, sample, cache, tokenizer_dir):
    bare = dataclasses.replace(sample, videos={}, images={})
    with pytest.raises(DataError, match="needs a control_video"):
        SampleEncoder(tiny_control(tokenizer_dir), cache, SPEC, "control").encode(bare)
    assert choose_task(card("wan-mini"), None, [bare]) == "i2v"
    assert choose_task(card("wan2.1-t2v-1.3b"), None, [sample]) == "t2v"
    with pytest.raises(DataError, match=r"no task of wan2\.1-fun-control-1\.3b"):
        choose_task(card("wan2.1-fun-control-1.3b"), None, [sample, bare])
    with pytest.raises(ModelError, match="no task 'control'"):
        choose_task(card("wan-mini"), "control", [sample])
    with pytest.raises(DataError, match="not prepared for v2v"):
        choose_task(card("wan-mini"), "v2v", [sample])


def test_texts_are_trimmed_and_the_empty_one_is_kept(mini, sample, cache):
    encoder = SampleEncoder(mini, cache, SPEC, "t2v")
    encoded, empty = encoder.encode(sample), encoder.encode_text("")
    context_LD = cache.get("texts", encoded.text_key)["context_LD"]
    num_tokens = mini.pipe.tokenizer("she dances", padding=False, truncation=False).shape[1]
    assert context_LD.shape == (num_tokens, 192) and cache.get("texts", empty)["context_LD"].shape == (1, 192)
    assert encoded.text_key == key_of_text(mini.card, mini.file_sha256, "she dances") != empty
    assert trimmed(torch.tensor([[1.0], [0.0], [2.0], [0.0]])).tolist() == [[1.0], [0.0], [2.0]]


def test_what_is_cached_is_not_encoded_again(mini, sample, cache, monkeypatch):
    first = SampleEncoder(mini, cache, SPEC, "i2v").encode(sample)
    monkeypatch.setattr("sakuga.training.encoding.encode", None)  # to call it would fail
    again = SampleEncoder(mini, cache, SPEC, "i2v").encode(sample)
    assert (first.is_new, again.is_new) == (True, False)
    assert dataclasses.replace(again, is_new=True) == first
    renamed = SampleEncoder(mini, cache, SPEC, "i2v").encode(dataclasses.replace(sample, prompt="he dances"))
    assert renamed.video_key == first.video_key and renamed.text_key != first.text_key


def test_the_key_depends_on_all_that_decides_the_tensors(mini, sample, cache, monkeypatch):
    keys = set()
    monkeypatch.setattr(SampleEncoder, "_video_tensors", lambda *_: {"latents_CThw": torch.zeros(1)})
    other_vae = dataclasses.replace(mini, file_sha256={**mini.file_sha256, "vae/vae.safetensors": "0" * 64})
    swapped = dataclasses.replace(sample, images={"input_image": sample.images["end_image"]})
    unlayered = dataclasses.replace(sample, layers=None)
    for model, source, spec, task in (
        (mini, sample, SPEC, "i2v"), (other_vae, sample, SPEC, "i2v"), (mini, swapped, SPEC, "i2v"),
        (mini, unlayered, SPEC, "i2v"), (mini, sample, SPEC, "t2v"),
        (mini, sample, dataclasses.replace(SPEC, width=48), "i2v"),
        (mini, sample, dataclasses.replace(SPEC, fps=16), "i2v"),
    ):  # fmt: skip
        keys.add(SampleEncoder(model, cache, spec, task).encode(source).video_key)
    assert len(keys) == 7
    # What the task does not take does not count.
    unused = dataclasses.replace(sample, videos={})
    assert SampleEncoder(mini, cache, SPEC, "i2v").encode(unused).video_key in keys


def test_shares_of_layers():
    layers = np.zeros((9, 16, 16), np.uint8)
    layers[:, :, 8:] = 1
    layers[5:, :8, 8:] = 2  # moves once, in the second group of four
    shares = layer_shares(layers, 8).numpy()
    shape, colour, motion = (shares[LAYERS.index(name)] for name in ("shape", "colour", "motion"))
    assert shares.shape == (3, 3, 2, 2) and shares.dtype == np.uint8
    assert (shape[0, 0] == round(255 / 8)).all()  # one column of eight on both sides
    assert colour[0, 0].tolist() == [0, round(255 * 7 / 8)]
    assert motion[:2].max() == 0
    assert motion[2].tolist() == [[0, round(255 / 4)], [0, 0]]
    assert shape[2, 0, 1] == round(255 * (8 + 8 - 1) / 64)  # a column, and a row towards the layer below


def test_a_480p_clip_of_81_frames_takes_at_most_5_mib(cache):
    """Shapes as the cards say them; a caption of 100 tokens is 75 words."""
    shape = card("wan2.1-t2v-1.3b").latent_shape(832, 480, 81)[1:]
    cache.put("videos", "0" * 64, {"latents_CThw": torch.zeros(shape, dtype=torch.bfloat16)})
    context_LD = torch.zeros(512, 4096)
    context_LD[:100] = 1
    cache.put("texts", "0" * 64, {"context_LD": trimmed(context_LD).to(torch.bfloat16)})
    num_bytes = sum(path.stat().st_size for path in Path(cache.address).rglob("*.safetensors"))
    assert 4 * 2**20 < num_bytes <= 5 * 2**20


def test_the_cache_may_lie_on_s3(mini, sample, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    bucket = f"bucket-{os.urandom(6).hex()}"
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
    try:
        stored, elsewhere = (LatentCache(f"s3://{bucket}/x", tmp_path / name, endpoint_url=url) for name in "ab")
        first = SampleEncoder(mini, stored, SPEC, "i2v").encode(sample)
        assert not SampleEncoder(mini, elsewhere, SPEC, "i2v").encode(sample).is_new
        assert set(elsewhere.get("videos", first.video_key)) == {"latents_CThw", "y_CThw", "layers_GThw"}
    finally:
        server.stop()
