"""Rows of the matrix of features against the plain render; all of them in tests/proof."""

import pytest

import matrix
from sakuga.wan.mini.tokenizer import save_tokenizer

pytestmark = pytest.mark.dist

EVERY = 4
"""Rows of this file: one of so many, about a minute and a half."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    save_tokenizer(folder / "tokenizer", 1024)
    return folder


def described(row: dict[str, str]) -> str:
    return " ".join(row.values())


@pytest.mark.parametrize("row", matrix.rows()[::EVERY], ids=described)
def test_a_row_is_the_plain_render(row, world, folder):
    outcome = matrix.run_row(row, world, folder, str(folder / "tokenizer"))
    assert outcome.passed, f"latents {outcome.latent_error:.2g}, frames {outcome.psnr_db:.1f} dB"
