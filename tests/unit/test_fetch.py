"""Fetching a card's files: what is asked of the downloader, and what a failed download says. No network.

Run: pytest tests/unit/test_fetch.py
"""

from pathlib import Path

import pytest

from sakuga.errors import StorageError
from sakuga.wan.catalogue import card
from sakuga.wan.fetch import fetch_card
from sakuga.wan.weights import find_parts


@pytest.fixture
def hub(monkeypatch):
    """Stands for both hubs: writes what a request's pattern names, and notes the request."""
    from diffsynth.core import ModelConfig

    asked: list[tuple[str, str, str]] = []

    def download(config):
        asked.append((config.download_source, config.model_id, config.origin_file_pattern))
        folder = Path(config.local_model_path) / config.model_id
        name = config.parse_original_file_pattern().replace("*", "-00001-of-00001")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x")

    monkeypatch.setattr(ModelConfig, "download", download)
    monkeypatch.delenv("DIFFSYNTH_MODEL_BASE_PATH", raising=False)
    return asked


def test_every_file_of_the_card_is_fetched_to_where_the_loader_looks(hub, tmp_path):
    from sakuga.storage import open_storage

    found = card("wan2.2-i2v-a14b")
    paths = fetch_card(found, tmp_path, "huggingface")
    assert [(model_id, pattern) for _, model_id, pattern in hub] == [(f.model_id, f.pattern) for f in found.files]
    assert {source for source, _, _ in hub} == {"huggingface"}
    assert all(path.exists() for path in paths)
    parts = find_parts(found, open_storage(tmp_path, cache_dir=tmp_path / "cache"))
    assert [part.file for part in parts] == list(found.files)


def test_failed_download_is_one_sentence(monkeypatch, tmp_path):
    from diffsynth.core import ModelConfig

    def refuse(_config):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(ModelConfig, "download", refuse)
    with pytest.raises(StorageError, match="no route to host; check the network") as caught:
        fetch_card(card("wan2.1-t2v-1.3b"), tmp_path, "modelscope")
    assert "much more" not in caught.value.message


def test_hub_without_the_file(monkeypatch, tmp_path):
    from diffsynth.core import ModelConfig

    monkeypatch.setattr(ModelConfig, "download", lambda _config: None)
    with pytest.raises(StorageError, match="has no diffusion_pytorch_model"):
        fetch_card(card("wan2.1-t2v-1.3b"), tmp_path, "modelscope")
