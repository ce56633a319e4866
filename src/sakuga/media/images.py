"""Reads pictures that nobody vouches for, and gives upright 8-bit RGB.

Only three decoders are reachable, the size is read from the header before any pixel is decoded, and the result carries
no metadata. Conversions, in this order: first frame, EXIF orientation, 16 to 8 bits, alpha onto white, ICC to sRGB.

Run its tests: pytest tests/unit/test_media_images.py
"""

import hashlib
import io
import logging
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from sakuga.errors import ImageError, shown

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP")
ACCEPTED = "accepted are JPEG, PNG and WebP"
MAX_PIXELS = 40_000_000  # a 9.9 kB PNG of 9000x9000 takes 400 MB to decode; phones take pictures of up to 50 MP
MAX_FILE_BYTES = 100_000_000
SNIFF_BYTES = 512
SIGNATURES = (
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS"),
    (b"8BPS", "Photoshop"),
    (b"SIMPLE  =", "FITS"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"PK\3\4", "ZIP"),
)
PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


def load_image(
    path: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    tell: Callable[[str], None] | None = None,
    label: str | None = None,
) -> Image.Image:
    """The picture as upright RGB without metadata; of an animation the first frame. Raises ImageError.

    `max_pixels` bounds width x height, read from the header: decoding takes 20 to 30 bytes a pixel. `tell` is given a
    sentence for whatever of the file has no effect; it is logged in any case. `label` stands for the path in sentences
    that go to somebody who has never seen it.
    """
    label = label or shown(path)

    def say(text: str) -> None:
        logger.warning("%s: %s", text, label)
        if tell is not None:
            tell(text)

    data = _read_file(Path(path), label)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is the stricter one
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(f"{label} is {_sniff(data)}; {ACCEPTED}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{label} has more than {max_pixels:,} pixels; make it smaller") from None
    except Exception as error:  # decoders raise struct.error, IndexError and others on damaged headers
        raise _damaged(label, error) from error
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(f"{label} is {width}x{height}; make it smaller, at most {max_pixels:,} pixels are taken")
    try:
        return _upright_rgb(picture, say)
    except Exception as error:  # as above, for the pixels
        raise _damaged(label, error) from error


def image_sha256(image: Image.Image) -> str:
    """sha256 of the size and the RGB pixels: the identity of a conditioning picture in a recipe."""
    rgb = image.convert("RGB")
    return hashlib.sha256(f"RGB {rgb.width}x{rgb.height}\n".encode() + rgb.tobytes()).hexdigest()


def fit_image(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest centred part of the picture with the asked aspect, resized with Lanczos."""
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def _read_file(path: Path, label: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or device could be read for ever
            raise ImageError(f"{label} is not a file; give the path of a picture")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{label} has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are taken")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{label} does not exist; check the path") from None
    except (OSError, ValueError) as error:  # ImageError is a ValueError; a NUL in a path is one too
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{label} cannot be read ({reason}); check the path and its permissions") from error
    if not data:
        raise ImageError(f"{label} is empty (0 bytes); copy it again")
    return data


def _upright_rgb(picture: Image.Image, say: Callable[[str], None]) -> Image.Image:
    num_frames = getattr(picture, "n_frames", 1)
    if num_frames > 1:
        say(f"animated picture, the first of {num_frames} frames is used")
        picture.seek(0)
    icc_profile = picture.info.get("icc_profile")
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    picture = _on_white(_eight_bits(picture))
    if icc_profile:
        picture = _to_srgb(picture, icc_profile, say)
    rgb = picture.convert("RGB")
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())  # a new picture: no EXIF, no GPS, no file behind it


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey by its high byte, as Pillow does for 16-bit colour; its own conversion of grey clips at 255."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return picture


def _on_white(picture: Image.Image) -> Image.Image:
    """L, RGB or CMYK; what is transparent shows white."""
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if picture.mode in PROFILE_SPACES:
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _to_srgb(picture: Image.Image, icc_profile: bytes, say: Callable[[str], None]) -> Image.Image:
    """Through the embedded profile; one that is broken or of another space is left out, and that is said."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        if source.profile.xcolor_space.strip() != PROFILE_SPACES[picture.mode]:
            say("colour profile is of another colour space, taken as sRGB")
            return picture
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError, ValueError):
        say("colour profile cannot be used, taken as sRGB")
        return picture
    return picture if converted is None else converted


def _sniff(data: bytes) -> str:
    """What a file is that no accepted decoder knows, for the error."""
    for signature, name in SIGNATURES:
        if data.startswith(signature):
            return f"{'an' if name == 'EPS' else 'a'} {name} file"
    if data[4:8] == b"ftyp":
        return "HEIC or AVIF or a video"
    head = data[:SNIFF_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if b"\0" not in data[:SNIFF_BYTES] and all(byte >= 32 or byte in b"\t\r\n" for byte in data[:SNIFF_BYTES]):
        return "text, not a picture"
    return "not a picture that can be recognised, or damaged"


def _damaged(label: str, error: Exception) -> ImageError:
    reason = str(error).strip() or type(error).__name__
    return ImageError(f"{label} is damaged or cut off ({shown(reason, 120)}); copy it again")
