"""Worlds of two and four processes, started when the first test asks for them."""

import pytest

from ranks import Ranks


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """`world(2)`: the processes of a world size, shared by all tests."""
    worlds: dict[int, Ranks] = {}

    def of(world_size: int) -> Ranks:
        if world_size not in worlds:
            worlds[world_size] = Ranks(world_size, tmp_path_factory.mktemp(f"world{world_size}"))
        return worlds[world_size]

    yield of
    for ranks in worlds.values():
        ranks.close()
