"""Thumbnails, spritesheets, contact sheets and animations show the right frames at the right places."""

import numpy as np
import pytest
from PIL import Image

from sakuga.errors import VideoError
from sakuga.media import contact_sheet, save_image, spritesheet_webp, thumbnail_webp, write_animation


def numbered(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame n is grey of level 4 n: it can be told which frame a pixel came from."""
    levels = 4 * np.arange(num_frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def level(image: Image.Image, x: int, y: int) -> float:
    return float(np.mean(image.convert("RGB").getpixel((x, y))))


def test_the_thumbnail_is_the_middle_frame(tmp_path):
    thumbnail_webp(tmp_path / "t.webp", numbered(33), max_side=32)
    image = Image.open(tmp_path / "t.webp")
    assert (image.format, image.size) == ("WEBP", (32, 24))
    assert level(image, 10, 10) == pytest.approx(64, abs=3)


@pytest.mark.parametrize("num_frames", [1, 4, 17, 25, 60])
def test_every_tile_of_a_spritesheet_can_be_found(tmp_path, num_frames):
    layout = spritesheet_webp(tmp_path / "s.webp", numbered(num_frames), tile_side=32)
    image = Image.open(tmp_path / "s.webp")
    assert layout.num_tiles == min(25, num_frames)
    assert image.width == layout.columns * layout.tile_width
    levels = []
    for tile in range(layout.num_tiles):
        x = tile % layout.columns * layout.tile_width + layout.tile_width // 2
        y = tile // layout.columns * layout.tile_height + layout.tile_height // 2
        levels.append(level(image, x, y))
    expected = 4 * np.linspace(0, num_frames - 1, layout.num_tiles).round()
    np.testing.assert_allclose(levels, expected, atol=3)  # lossy webp


def test_a_contact_sheet_has_a_strip_for_each_video():
    sheet = contact_sheet([("first", numbered(33)), ("wide \x1b[31m" + "x" * 500, numbered(9, 48, 128))], num_frames=3)
    # Strips are 128 high, tiles 171 and 341 wide, with 4 pixels between them and 22 for the title.
    assert sheet.size == (3 * (341 + 4) + 4, 2 * (22 + 128 + 4) + 4)
    assert [level(sheet, 4 + place * 175 + 80, 90) for place in range(3)] == [0, 64, 128]
    assert [level(sheet, 4 + place * 345 + 80, 244) for place in range(3)] == [0, 16, 32]


def test_a_contact_sheet_of_nothing():
    with pytest.raises(VideoError):
        contact_sheet([])


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_plays_every_frame_for_ever(tmp_path, suffix):
    write_animation(tmp_path / f"a{suffix}", numbered(12), 10, max_side=32)
    image = Image.open(tmp_path / f"a{suffix}")
    assert image.n_frames == 12
    assert image.size == (32, 24)
    assert image.info["loop"] == 0
    for frame in (0, 5, 11):
        image.seek(frame)
        image.load()
        assert image.info["duration"] == 100
        assert level(image, 16, 12) == pytest.approx(4 * frame, abs=3)


def test_an_animation_of_another_kind(tmp_path):
    with pytest.raises(VideoError, match=r"\.webp or \.gif"):
        write_animation(tmp_path / "a.png", numbered(3), 10)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_pictures_are_saved_by_their_suffix(tmp_path, name):
    save_image(tmp_path / name, Image.new("RGB", (20, 10), "white"))
    with Image.open(tmp_path / name) as image:
        assert image.size == (20, 10)
        assert level(image, 5, 5) == 255
