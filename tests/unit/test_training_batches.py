"""Micro-batches: the same samples and noises however many workers share them."""

import pytest
import torch

from sakuga.errors import DataError, TrainError
from tiny_training import batches_of, config, prepared_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared_set(folder, layers=True)
    return folder


@pytest.mark.parametrize("num_batches", [2, 3])
def test_workers_share_the_samples_of_one(folder, num_batches):
    batches = batches_of(folder, config(global_batch_size=6), micro_batch_size=2)
    alone = [entry for part in batches.of_step(3, num_batches=1, index=0) for entry in part]
    shared = [
        entry
        for index in range(num_batches)
        for part in batches.of_step(3, num_batches=num_batches, index=index)
        for entry in part
    ]
    assert sorted(shared, key=lambda e: e.draw.number) == sorted(alone, key=lambda e: e.draw.number)
    assert sum(entry.share for entry in batches_of(folder, config(loss_weighting="none")).of_step(
        0, num_batches=1, index=0)[0]) <= 1  # fmt: skip


def test_fillers_count_nothing_and_keep_workers_in_step(folder):
    batches = batches_of(folder, config(global_batch_size=4), micro_batch_size=1)
    parts = [batches.of_step(0, num_batches=3, index=index, fill=True) for index in range(3)]
    assert len({len(part) for part in parts}) == 1
    shares = [entry.share for part in parts for batch in part for entry in batch]
    assert sum(share > 0 for share in shares) == 4
    assert len(shares) > 4


def test_geometries_are_not_mixed(folder):
    batches = batches_of(folder, config(global_batch_size=6))
    for part in batches.of_step(0, num_batches=1, index=0):
        batch = batches.micro_batch(part)
        assert batch.latents_BCThw.shape[0] == len(part)
        assert batch.text_BLD.shape[1] == 512
        assert batch.given["y_BCTHW"].shape[1] == 20


def test_dropped_texts_are_the_empty_one(folder):
    batches = batches_of(folder, config(text_dropout=1.0))
    entries = batches.of_step(0, num_batches=1, index=0)[0]
    dropped = batches.micro_batch(entries)
    kept = batches_of(folder, config(text_dropout=0.0)).micro_batch(entries[:1])
    assert dropped.text_BLD[0].any(dim=1).sum() == 1
    assert torch.equal(dropped.text_BLD[0], kept.text_BLD[0])  # the entry says what is dropped, not the settings


def test_layer_weights_need_layer_maps(folder, tmp_path):
    weighted = batches_of(folder, config(layer_weights={"shape": 2.0}))
    batch = weighted.micro_batch(weighted.of_step(0, num_batches=1, index=0)[0])
    assert batch.pixel_weight_B1Thw.max() > 2
    prepared_set(tmp_path)
    with pytest.raises(TrainError, match="layer maps"):
        batches_of(tmp_path, config(layer_weights={"shape": 2.0}))


def test_nothing_to_train_on(tmp_path):
    prepared_set(tmp_path, num_train=0)
    with pytest.raises(DataError, match="no training sample"):
        batches_of(tmp_path, config())
