"""All rows of the matrix of features against the plain render: some minutes.

What passes here is what `verified.json` may say; `python tests/matrix.py --write` writes it.
"""

import pytest

import matrix
from ranks import Ranks
from sakuga.wan.mini.tokenizer import save_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    save_tokenizer(folder / "tokenizer", 1024)
    return folder


@pytest.fixture(scope="module")
def world(folder):
    worlds: dict[int, Ranks] = {}

    def of(size: int) -> Ranks:
        if size not in worlds:
            (folder / str(size)).mkdir()
            worlds[size] = Ranks(size, folder / str(size))
        return worlds[size]

    yield of
    for ranks in worlds.values():
        ranks.close()


@pytest.mark.parametrize("row", matrix.rows(), ids=lambda row: " ".join(row.values()))
def test_a_row_is_the_plain_render(row, world, folder):
    outcome = matrix.run_row(row, world, folder, str(folder / "tokenizer"))
    assert outcome.passed, f"latents {outcome.latent_error:.2g}, frames {outcome.psnr_db:.1f} dB"
