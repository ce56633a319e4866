"""What `sakuga serve` refuses before it starts anything."""

import socket

import pytest

from sakuga.cli.serve import _config
from sakuga.errors import BusyError, InputError, SettingsError
from sakuga.farm.local_farm import LocalFarm


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pools:\n\t- model: wan-mini\n", "is no YAML"),
        ("pools: [", "is no YAML"),
        ("- wan-mini", "must hold"),
        ("24GiB", "must hold"),
        ("", "must hold"),
    ],
)
def test_configs_that_are_none(tmp_path, text, told):
    path = tmp_path / "farm.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as caught:
        _config(path)
    assert "farm.yaml" in caught.value.message and "\n" not in caught.value.message


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        _config(tmp_path / "none.yaml")


def test_a_port_in_use_is_told_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=str(port)), LocalFarm.start({}, tmp_path / "data", port=port):
            raise AssertionError("it started")
    assert not (tmp_path / "data").exists()
