"""The cache of latents and the index of a prepared data set."""

import dataclasses

import pytest
import torch

from sakuga.errors import DataError
from sakuga.training.prepared import INDEX_NAME, LatentCache, PreparedSample, PreparedSet, text_key, video_key


@pytest.fixture
def prepared():
    sample = PreparedSample(
        name="a.mp4", split="train", video_key="v1", text_key="t1", prompt="she dances", width=128, height=128,
        num_frames=33, fps=15.0,
    )  # fmt: skip
    return PreparedSet(
        model="wan-mini", weights_sha256="0" * 64, task="i2v", empty_text_key="t0", cache="cache",
        samples=(sample, dataclasses.replace(sample, name="b.mp4", split="test", video_key="v2")),
    )  # fmt: skip


def test_index_survives_its_file(prepared, tmp_path):
    prepared.write(tmp_path)
    assert PreparedSet.read(tmp_path) == prepared
    assert [sample.name for sample in prepared.of("test")] == ["b.mp4"]


def test_content_follows_from_the_keys_only(prepared):
    renamed = dataclasses.replace(prepared.samples[0], name="other.mp4")
    assert dataclasses.replace(prepared, samples=(renamed, prepared.samples[1])).content_sha256 == (
        prepared.content_sha256
    )
    changed = dataclasses.replace(prepared.samples[0], text_key="t2")
    assert dataclasses.replace(prepared, samples=(changed, prepared.samples[1])).content_sha256 != (
        prepared.content_sha256
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1, "model": "wan-mini"}'])
def test_a_damaged_index_is_refused(tmp_path, text):
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(DataError, match="prepare"):
        PreparedSet.read(tmp_path)


def test_no_index_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="sakuga prepare"):
        PreparedSet.read(tmp_path)


def test_entries_are_written_once_and_read_back(tmp_path):
    cache = LatentCache(tmp_path / "cache", tmp_path / "local")
    key = video_key(file="f", vae="v", width=128, height=128)
    assert not cache.has("videos", key)
    cache.put("videos", key, {"latents_CThw": torch.ones(2, 3)})
    cache.put("videos", key, {"latents_CThw": torch.zeros(2, 3)})  # the first one stays
    assert cache.has("videos", key)
    assert torch.equal(cache.get("videos", key)["latents_CThw"], torch.ones(2, 3))
    assert [path.suffix for path in (tmp_path / "cache" / "videos").iterdir()] == [".safetensors"]


def test_missing_and_damaged_entries(tmp_path):
    cache = LatentCache(tmp_path, tmp_path / "local")
    with pytest.raises(DataError, match="not in the cache"):
        cache.get("texts", "0" * 64)
    (tmp_path / "texts").mkdir(exist_ok=True)
    (tmp_path / "texts" / f"{'1' * 64}.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(DataError, match="damaged"):
        cache.get("texts", "1" * 64)


def test_keys_differ_by_every_fact():
    facts = {"file": "a", "vae": "b", "width": 128, "height": 128, "num_frames": 33, "fps": 15.0}
    keys = {video_key(**facts)} | {video_key(**{**facts, name: "other"}) for name in facts}
    assert len(keys) == len(facts) + 1
    assert text_key(text="a", text_encoder_sha256="t", max_tokens=512) != text_key(
        text="", text_encoder_sha256="t", max_tokens=512
    )
