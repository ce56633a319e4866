"""Crafted pictures: each becomes a plain PNG or an ImageError with a sentence, whatever it does to its decoder."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from sakuga.api import uploads
from sakuga.api.uploads import UploadLimits, safe_image
from sakuga.errors import BusyError, DiskFullError, ImageError
from sakuga.media import decoder, fit_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PNG_START = b"\x89PNG\r\n\x1a\n"
ORIENTATION, GPS = 0x0112, 0x8825
GREY, COLOUR, INDEXED = 0, 2, 3
# What a camera does to the pixels before it writes the tag.
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, depth: int = 8, kind: int = GREY, lines: bytes | None = None, more=b"") -> bytes:
    """A PNG of its parts. Without `lines` one black byte stream that compresses a thousand times."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    if lines is None:
        squeeze = zlib.compressobj(9)
        row = bytes(1 + (width * depth + 7) // 8)
        body = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    else:
        body = zlib.compress(lines)
    return PNG_START + header + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def corners(width: int = 48, height: int = 32) -> Image.Image:
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def noise(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_exif(orientation: int) -> bytes:
    """A photo of `corners` as a camera stores it when held so, with the place where it was taken."""
    image, exif = corners(), Image.Exif()
    if orientation in STORED_AS:
        image = image.transpose(STORED_AS[orientation])
    exif[ORIENTATION] = orientation
    exif.get_ifd(GPS)[1] = "N"
    exif[0x010E] = "SECRET PLACE"
    return encoded(image, quality=95, subsampling=0, exif=exif)


def animation(num_frames: int) -> bytes:
    """An animated PNG of 1x1, black and white in turn."""

    def control(number: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 1, 1, 0, 0, 1, 10, 0, 0))

    frames = [control(0) + chunk(b"IDAT", zlib.compress(b"\0\0"))]
    for frame in range(1, num_frames):
        pixel = zlib.compress(b"\0\xff" if frame % 2 else b"\0\0")
        frames.append(control(2 * frame - 1) + chunk(b"fdAT", struct.pack(">I", 2 * frame) + pixel))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, GREY, 0, 0, 0))
    return (
        PNG_START + header + chunk(b"acTL", struct.pack(">II", num_frames, 0)) + b"".join(frames) + chunk(b"IEND", b"")
    )


def indexed_with_transparency() -> bytes:
    palette = chunk(b"PLTE", bytes(RED + GREEN)) + chunk(b"tRNS", bytes((255, 0)))
    return png(8, 8, kind=INDEXED, lines=b"".join(b"\0" + bytes([0] * 4 + [1] * 4) for _ in range(8)), more=palette)


def of_gradient(width: int, height: int) -> bytes:
    row = b"".join(struct.pack(">H", round(x * 65535 / (width - 1))) for x in range(width))
    return png(width, height, depth=16, lines=b"".join(b"\0" + row for _ in range(height)))


def wide_webp() -> bytes:
    """16383x16383 by its header, the most that the format allows."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    place = data.index(b"VP8L") + 9
    (head,) = struct.unpack_from("<I", data, place)
    struct.pack_into("<I", data, place, head & ~(2**28 - 1) | 16382 << 14 | 16382)
    return bytes(data)


def made_safe(tmp_path: Path, data: bytes, **options) -> Image.Image:
    """What becomes of an upload; the file itself is checked to be a PNG of pixels alone."""
    source, out = tmp_path / "upload", tmp_path / "safe.png"
    source.write_bytes(data)
    assert safe_image(source, out=out, label="input_reference", **options) == out
    assert chunk_names(out.read_bytes()) <= {b"IHDR", b"IDAT", b"IEND"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["safe.png", "upload"]
    image = Image.open(out)
    image.load()
    assert image.mode == "RGB"
    return image


def refused(tmp_path: Path, data: bytes, **options) -> str:
    source = tmp_path / "upload"
    source.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        safe_image(source, out=tmp_path / "safe.png", label="input_reference", **options)
    message = caught.value.message
    assert message.startswith("input_reference ")
    assert str(tmp_path) not in message  # no path of the server goes to its users
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]
    return message


def chunk_names(data: bytes) -> set[bytes]:
    assert data.startswith(PNG_START)
    names, place = set(), len(PNG_START)
    while place < len(data):
        (num_bytes,) = struct.unpack_from(">I", data, place)
        names.add(data[place + 4 : place + 8])
        place += num_bytes + 12
    assert place == len(data)  # nothing behind the end
    return names


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "0 bytes": (lambda: b"", "empty"),
    "text": (lambda: b"this is not a picture", "text, not a picture"),
    "cut JPEG": (lambda: encoded(noise())[:700], "damaged or cut off"),
    "cut PNG": (lambda: encoded(noise(), "PNG")[:700], "damaged or cut off"),
    "only a header": (lambda: png(64, 64)[:33], "or damaged; accepted are"),
    "9000x9000 in few bytes": (lambda: png(9000, 9000, depth=1), "9000x9000; make it smaller"),
    "12000x12000": (lambda: png(12_000, 12_000, lines=b"\0"), "12000x12000; make it smaller"),
    "30000x30000": (lambda: png(30_000, 30_000, lines=b"\0"), "pixels; make it smaller"),
    "WebP of 16383x16383": (wide_webp, "make it smaller"),
    "side of 2^31": (lambda: png(2**31 - 1, 1, lines=b"\0"), "make it smaller"),
    "SVG": (lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing; accepted"),
    "PDF": (lambda: encoded(corners(), "PDF"), "a PDF file; accepted are JPEG, PNG and WebP"),
    "EPS": (lambda: encoded(corners(), "EPS"), "an EPS file"),
    "TIFF": (lambda: encoded(corners(), "TIFF"), "a TIFF file"),
    "GIF": (lambda: encoded(corners(), "GIF"), "a GIF file"),
    "PSD": (lambda: b"8BPS\0\1" + bytes(60), "a Photoshop file"),
    "FITS": (lambda: b"SIMPLE  =                    T" + bytes(60), "a FITS file"),
    "HEIC": (lambda: b"\0\0\0\x18ftypheic" + bytes(60), "HEIC or AVIF or a video"),
    "MP4 sent as a picture": (lambda: b"\0\0\0\x18ftypisom" + bytes(60), "HEIC or AVIF or a video"),
    "ZIP": (lambda: b"PK\3\4" + bytes(60), "a ZIP file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    make, sentence = REFUSED[name]
    assert sentence in refused(tmp_path, make())


TAKEN: dict[str, tuple[Callable[[], bytes], tuple[int, int], dict[tuple[int, int], tuple[int, int, int]]]] = {
    "1x1": (lambda: png(1, 1), (1, 1), {(0, 0): (0, 0, 0)}),
    "1x10000": (lambda: png(1, 10_000), (1, 10_000), {}),
    "16 bits": (lambda: of_gradient(16, 2), (16, 2), {(0, 0): (0, 0, 0), (15, 0): (255,) * 3, (8, 0): (136,) * 3}),
    "1 bit": (lambda: png(9, 3, depth=1, lines=b"\0\xff\x80" * 3), (9, 3), {(0, 0): (255,) * 3}),
    "CMYK": (lambda: encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100), (8, 8), {(4, 4): (254, 0, 0)}),
    "palette with transparency": (indexed_with_transparency, (8, 8), {(0, 0): RED, (7, 0): (255,) * 3}),
    "grey with alpha": (
        lambda: encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"), (8, 8), {(4, 4): (255,) * 3},
    ),
    "animation of 10,000 frames": (lambda: animation(10_000), (1, 1), {(0, 0): (0, 0, 0)}),
    "broken profile": (lambda: encoded(corners(), "PNG", icc_profile=b"no profile"), (48, 32), {(0, 0): RED}),
    "JPEG that is also ZIP": (lambda: encoded(corners()) + b"PK\3\4evil", (48, 32), {}),
    "JPEG that is also HTML": (
        lambda: encoded(corners(), comment=b"<html><script>alert(1)</script>"), (48, 32), {},
    ),
    "PNG with text": (
        lambda: png(4, 4, more=chunk(b"tEXt", b"Comment\0<script>alert(1)</script>")), (4, 4), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_taken(tmp_path, name):
    make, size, pixels = TAKEN[name]
    image = made_safe(tmp_path, make())
    assert image.size == size
    for place, colour in pixels.items():
        assert np.abs(np.subtract(image.getpixel(place), colour)).max() <= 2, place
    assert fit_image(image, 64, 48).size == (64, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_and_without_its_place(tmp_path, orientation):
    image = made_safe(tmp_path, with_exif(orientation))
    assert image.size == (48, 32)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(corners())).mean() < 6
    assert b"SECRET" not in (tmp_path / "safe.png").read_bytes()


def test_a_profile_of_wide_colours_is_applied(tmp_path):
    """The lab profile is of another space: left out, and that is said."""
    notes: list[str] = []
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    made_safe(tmp_path, encoded(corners(), "PNG", icc_profile=profile), tell=notes.append)
    assert len(notes) == 1
    assert "another colour space" in notes[0]


def test_frames_behind_the_first_are_said(tmp_path):
    notes: list[str] = []
    made_safe(tmp_path, animation(3), tell=notes.append)
    assert "first of 3 frames" in notes[0]


def test_more_bytes_than_allowed_start_no_decoder(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "DECODER", ("none",))
    assert "at most 10 are taken" in refused(tmp_path, png(8, 8), limits=UploadLimits(max_bytes=10))


def child(code: str) -> tuple[str, ...]:
    """A decoder with a fault. `faulty` takes the place of load_image, behind the limits."""
    program = f"""
import json, os, sys, time
from sakuga.media import decoder
def faulty(*args, **options):
    {code}
decoder.load_image = faulty
answer = decoder.decode(decoder.Task(**json.loads(sys.argv[1])))
print(json.dumps(decoder.asdict(answer)))
"""
    return (sys.executable, "-c", program)


@pytest.mark.parametrize(
    "code, limits, sentence",
    [
        ("os.abort()", UploadLimits(), "made its decoder fail"),
        ("os._exit(3)", UploadLimits(), "made its decoder fail"),
        ("raise RecursionError", UploadLimits(), "made its decoder fail"),
        ("time.sleep(600)", UploadLimits(wall_s=0.5), "takes too long"),
        ("while True: pass", UploadLimits(cpu_s=1), "takes too long"),
    ],
)
def test_a_decoder_that_crashes_or_hangs(tmp_path, monkeypatch, code, limits, sentence):
    monkeypatch.setattr(uploads, "DECODER", child(code))
    assert sentence in refused(tmp_path, png(8, 8), limits=limits)


needs_memory_limit = pytest.mark.skipif(not decoder.MEMORY_IS_LIMITED, reason="this system does not limit memory")


@needs_memory_limit
def test_a_decoder_that_eats_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "DECODER", child("bytearray(2**40)"))
    assert "needs more than 1024 MiB" in refused(tmp_path, png(8, 8))


@needs_memory_limit
def test_a_picture_within_its_pixels_that_eats_memory(tmp_path):
    limits = UploadLimits(memory_bytes=220 * 2**20)
    made_safe(tmp_path, png(8, 8), limits=limits)
    (tmp_path / "safe.png").unlink()
    assert "needs more than 220 MiB" in refused(tmp_path, png(4900, 4900), limits=limits)


def test_a_system_that_does_not_limit_memory_says_so(tmp_path, monkeypatch, caplog):
    uploads._say_once.cache_clear()
    monkeypatch.setattr(uploads, "MEMORY_IS_LIMITED", False)
    made_safe(tmp_path, png(8, 8))
    made_safe(tmp_path, png(8, 8))
    assert caplog.text.count("does not limit the memory") == 1


def test_only_some_are_decoded_at_once(tmp_path):
    (tmp_path / "upload").write_bytes(png(8, 8))
    for _ in range(uploads.MAX_AT_ONCE):
        uploads._slots.acquire()
    try:
        with pytest.raises(BusyError, match="try again"):
            safe_image(tmp_path / "upload", out=tmp_path / "safe.png", limits=UploadLimits(wall_s=0.01))
    finally:
        uploads._slots.release(uploads.MAX_AT_ONCE)


def test_a_full_disk_is_not_the_pictures_fault(tmp_path, monkeypatch):
    answer = decoder.Answer(error="no space", errno=28)
    program = f"print({json.dumps(json.dumps(asdict(answer)))})"
    monkeypatch.setattr(uploads, "DECODER", (sys.executable, "-c", program))
    (tmp_path / "upload").write_bytes(png(8, 8))
    with pytest.raises(DiskFullError):
        safe_image(tmp_path / "upload", out=tmp_path / "safe.png")
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


def test_limits_that_are_there_already_may_be_lower(tmp_path, monkeypatch):
    program = """
import json, resource, sys
from sakuga.media import decoder
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
print(json.dumps(decoder.asdict(decoder.decode(decoder.Task(**json.loads(sys.argv[1]))))))
"""
    monkeypatch.setattr(uploads, "DECODER", (sys.executable, "-c", program))
    made_safe(tmp_path, png(8, 8))


def test_the_decoder_sees_no_credentials_and_imports_little(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    program = "import os, sys, sakuga.media.decoder; print([*sys.modules, *os.environ])"
    seen = subprocess.run(
        [sys.executable, "-c", program], env=uploads._environment(), capture_output=True, text=True, check=True
    ).stdout
    assert "sakuga.media.images" in seen
    for name in ("AWS_SECRET_ACCESS_KEY", "'torch'", "'ray'", "'fastapi'", "'httpx'"):
        assert name not in seen
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "secret"
