"""Pictures that nobody vouches for: each kind is read as upright RGB or refused with its own sentence."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from sakuga.errors import ImageError
from sakuga.media import fit_image, image_sha256, load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
EXIF_ORIENTATION = 0x0112
EXIF_GPS = 0x8825
# What a camera does to the pixels before it writes the tag, undone by an upright reader: PIL's name of the transpose.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def corners(width: int = 48, height: int = 32) -> Image.Image:
    """Four quarters in red, green, blue and white: every rotation and reflection of it is different."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def png(width: int, height: int, depth: int, colour_type: int, pixels: bytes) -> bytes:
    """A PNG of header and pixels, for kinds that Pillow cannot write. `pixels` has a filter byte before each line."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def jpeg_bytes(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0, **options)
    return buffer.getvalue()


def refused(path: Path | str) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert caught.value.message.isprintable()
    return caught.value.message


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.PNG", "no_suffix"])
def test_accepted_formats_by_content(tmp_path, name):
    kind = {".jpg": "JPEG", ".webp": "WEBP"}.get(Path(name).suffix, "PNG")
    image = load_image(saved(tmp_path / name, corners(), format=kind))
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(corners())).mean() < 6


def test_missing(tmp_path):
    assert refused(tmp_path / "none.png").endswith("none.png' does not exist; check the path")


def test_a_folder_and_a_pipe_are_not_read(tmp_path):
    assert "not a file" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    assert "not a file" in refused(tmp_path / "pipe.png")


@pytest.mark.parametrize("name", ["a\0.png", "x" * 300 + ".png", "new\nline\x1b[31m.png"])
def test_hostile_file_names(name):
    refused(name)


def test_zero_bytes(tmp_path):
    (tmp_path / "a.png").touch()
    assert "0 bytes" in refused(tmp_path / "a.png")


def test_text_named_png(tmp_path):
    (tmp_path / "a.png").write_text("this is not a picture")
    assert "is text" in refused(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_truncated(tmp_path, kind, part):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = saved(tmp_path / "a", noise, format=kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert "damaged" in refused(path)


@pytest.mark.parametrize(("kind", "suffix"), [("GIF", "gif"), ("TIFF", "tiff"), ("BMP", "bmp"), ("PDF", "pdf")])
@pytest.mark.parametrize("disguise", [False, True])
def test_other_formats_name_the_accepted_ones(tmp_path, kind, suffix, disguise):
    path = saved(tmp_path / ("a.png" if disguise else f"a.{suffix}"), corners(), format=kind)
    message = refused(path)
    assert kind in message
    assert "JPEG, PNG and WebP" in message


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>', "SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"8BPS\0\1" + bytes(20), "Photoshop"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"SIMPLE  =                    T", "FITS"),
    ],
)
def test_formats_that_pillow_may_not_open(tmp_path, data, name):
    (tmp_path / "a.png").write_bytes(data)
    message = refused(tmp_path / "a.png")
    assert name in message
    assert "JPEG, PNG and WebP" in message


@pytest.mark.parametrize("side", [9_000, 12_000, 30_000])
def test_a_bomb_is_refused_by_its_header(tmp_path, side, monkeypatch):
    def load(self):
        raise AssertionError("pixels of a picture over the limit were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    path = tmp_path / "bomb.png"
    # The pixels would be zeros for 12 rows only: nobody should come to see that.
    path.write_bytes(png(side, side, 8, 2, bytes((1 + 3 * side) * 12)))
    assert path.stat().st_size < 10_000
    assert "40,000,000 pixels" in refused(path)


def test_the_limit_of_pixels_can_be_set(tmp_path):
    path = saved(tmp_path / "a.png", corners())
    load_image(path, max_pixels=48 * 32)
    with pytest.raises(ImageError, match="48x32"):
        load_image(path, max_pixels=48 * 32 - 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000)])
def test_extreme_shapes_can_be_fitted(tmp_path, size):
    image = load_image(saved(tmp_path / "a.png", Image.new("RGB", size, BLUE)))
    fitted = fit_image(image, 128, 96)
    assert fitted.size == (128, 96)
    assert fitted.getpixel((64, 48)) == BLUE


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    exif[EXIF_GPS] = {1: "N", 2: (52.0, 31.0, 12.0)}
    stored = corners() if STORED_AS[orientation] is None else corners().transpose(STORED_AS[orientation])
    image = load_image(saved(tmp_path / "a", stored, format=kind, exif=exif, quality=95))
    assert image.size == (48, 32)
    centres = [image.getpixel(place) for place in ((12, 8), (36, 8), (12, 24), (36, 24))]
    assert np.abs(np.array(centres) - np.array([RED, GREEN, BLUE, WHITE])).max() <= 4
    assert not image.getexif()
    assert image.info == {}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_does_no_harm(tmp_path):
    path = saved(tmp_path / "a.jpg", corners(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert load_image(path).size == (48, 32)


def test_cmyk(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (32, 32), (0, 255, 255, 0)), quality=95)
    assert np.abs(np.array(load_image(path).getpixel((16, 16))) - RED).max() <= 6


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    path = saved(tmp_path / "a.png", Image.fromarray(values))
    np.testing.assert_array_equal(np.asarray(load_image(path))[..., 0], values >> 8)


def test_sixteen_bit_colour(tmp_path):
    line = b"\0" + struct.pack(">HHH", 0xFF00, 0x8040, 0x0010) * 8
    (tmp_path / "a.png").write_bytes(png(8, 8, 16, 2, line * 8))
    assert load_image(tmp_path / "a.png").getpixel((4, 4)) == (0xFF, 0x80, 0x00)


def test_palette_with_transparency_shows_white(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((4, 4), 1)
    loaded = load_image(saved(tmp_path / "a.png", image, transparency=0))
    assert (loaded.getpixel((0, 0)), loaded.getpixel((4, 4))) == (WHITE, BLUE)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("LA", (0, 0), WHITE),
        ("LA", (0, 255), (0, 0, 0)),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 255, 255), BLUE),
        ("P", 0, RED),
    ],
)
def test_other_modes(tmp_path, mode, colour, expected):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette(RED)
    assert load_image(saved(tmp_path / "a.png", image)).getpixel((3, 3)) == expected


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation(tmp_path, kind, caplog):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    path = saved(tmp_path / "a", frames[0], format=kind, save_all=True, append_images=frames[1:], lossless=True)
    told = []
    image = load_image(path, tell=told.append)
    assert image.getpixel((8, 8)) == RED
    assert told == ["animated picture, the first of 3 frames is used"]
    assert told[0] in caplog.text


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries have changed places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red = profile.index(b"rXYZ", 128)
    green = profile.index(b"gXYZ", 128)
    data = bytearray(profile)
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def test_a_colour_profile_is_applied(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (8, 8), RED), icc_profile=swapped_profile())
    assert np.abs(np.array(load_image(path).getpixel((4, 4))) - GREEN).max() <= 3


@pytest.mark.parametrize("kind", ["garbage", "LAB"])
def test_a_useless_colour_profile_is_said_aloud(tmp_path, kind, caplog):
    data = b"garbage" if kind == "garbage" else ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()
    path = saved(tmp_path / "a.png", Image.new("RGB", (8, 8), RED), icc_profile=data)
    assert load_image(path).getpixel((4, 4)) == RED
    assert "colour profile" in caplog.text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_flipped_bytes_give_a_picture_or_an_image_error(tmp_path, kind, seed):
    generator = np.random.default_rng(seed)
    path = saved(tmp_path / "a", corners(), format=kind)
    original = path.read_bytes()
    outcomes = set()
    for _ in range(200):
        data = bytearray(original)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            outcomes.add(load_image(path).mode)
        except ImageError as error:
            outcomes.add(error.code)
    assert outcomes <= {"RGB", "E_IMAGE"}
    assert "E_IMAGE" in outcomes


def test_the_hash_is_of_content_and_size(tmp_path):
    image = corners()
    again = load_image(saved(tmp_path / "other_name.png", image, optimize=True))
    assert image_sha256(again) == image_sha256(image)
    changed = image.copy()
    changed.putpixel((0, 0), (254, 0, 0))
    assert image_sha256(changed) != image_sha256(image)
    same_bytes = Image.frombytes("RGB", (32, 48), image.tobytes())
    assert image_sha256(same_bytes) != image_sha256(image)


def test_fitting_keeps_the_centre():
    image = Image.new("RGB", (300, 100), RED)
    image.paste(GREEN, (100, 0, 200, 100))
    fitted = fit_image(image, 64, 64)
    assert fitted.size == (64, 64)
    assert {fitted.getpixel((x, y)) for x in (8, 32, 56) for y in (0, 63)} == {GREEN}
