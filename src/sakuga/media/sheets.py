"""Pictures made of videos: thumbnails, spritesheets for a page, contact sheets, animations for a README.

All take uint8 RGB frames of shape THWC and write files whole or not at all.

Run its tests: pytest tests/unit/test_media_sheets.py
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sakuga.errors import VideoError
from sakuga.media.files import write_bytes_atomic

WEBP_QUALITY = 85
SPRITE_TILES = 25
SPRITE_COLUMNS = 5
TITLE_PX = 22
MAX_TITLE_CHARS = 300  # more never fits; a prompt may have 32,000
GAP_PX = 4
PAPER = (250, 249, 246)
INK = (40, 38, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpriteSheet:
    """How a page finds tile n: column n % columns, row n // columns."""

    num_tiles: int
    columns: int
    tile_width: int
    tile_height: int


def save_image(path: Path, image: Image.Image) -> None:
    """Writes a picture in the format of the suffix (.png, .jpg, .webp), whole or not at all."""
    image_format = Image.registered_extensions()[path.suffix.lower()]
    write_bytes_atomic(path, _encoded(image, image_format, quality=WEBP_QUALITY))


def thumbnail_webp(path: Path, frames_THWC: np.ndarray, *, max_side: int = 320) -> None:
    """The middle frame (of image-to-video the first is only the user's photo), its longer side at most `max_side`."""
    image = Image.fromarray(frames_THWC[len(frames_THWC) // 2])
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    write_bytes_atomic(path, _encoded(image, "WEBP", quality=WEBP_QUALITY))


def spritesheet_webp(path: Path, frames_THWC: np.ndarray, *, tile_side: int = 160) -> SpriteSheet:
    """Up to 25 frames spread over the video in a grid of five columns, for scrubbing on a page; gives its layout."""
    tiles = [_shrunk(frame, tile_side) for frame in _spread(frames_THWC, SPRITE_TILES)]
    width, height = tiles[0].size
    columns = min(SPRITE_COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height))
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * width, place // columns * height))
    write_bytes_atomic(path, _encoded(sheet, "WEBP", quality=WEBP_QUALITY))
    return SpriteSheet(num_tiles=len(tiles), columns=columns, tile_width=width, tile_height=height)


def contact_sheet(
    videos: Sequence[tuple[str, np.ndarray]], *, num_frames: int = 8, tile_height: int = 128
) -> Image.Image:
    """One titled strip of frames a video, below each other. `videos` are (title, frames THWC); sizes may differ."""
    strips = [(title, [_resized(frame, tile_height) for frame in _spread(f, num_frames)]) for title, f in videos]
    if not strips:
        raise VideoError("a contact sheet needs at least one video")
    width = max(sum(tile.width + GAP_PX for tile in tiles) for _, tiles in strips) + GAP_PX
    row_px = TITLE_PX + tile_height + GAP_PX
    sheet = Image.new("RGB", (width, row_px * len(strips) + GAP_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for row, (title, tiles) in enumerate(strips):
        top = GAP_PX + row * row_px
        draw.text((GAP_PX + 1, top + 2), _shortened(title, font, width - 2 * GAP_PX), fill=INK, font=font)
        left = GAP_PX
        for tile in tiles:
            sheet.paste(tile, (left, top + TITLE_PX))
            left += tile.width + GAP_PX
    return sheet


def write_animation(path: Path, frames_THWC: np.ndarray, fps: float, *, max_side: int | None = None) -> None:
    """An endless animation: .webp (small, full colour) or .gif (shown everywhere), else VideoError."""
    suffix = path.suffix.lower()
    if suffix not in (".webp", ".gif"):
        raise VideoError(f"{path.name!r} is no animation that can be written; end the name in .webp or .gif")
    frames = [Image.fromarray(frame) if max_side is None else _shrunk(frame, max_side) for frame in frames_THWC]
    if suffix == ".gif":
        # One palette for all frames: with one each, still parts of the picture flicker.
        palette = Image.fromarray(np.concatenate([np.asarray(f) for f in frames[:: max(1, len(frames) // 8)]]))
        colours = palette.quantize(256, method=Image.Quantize.MEDIANCUT)
        frames = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
    options = {"save_all": True, "append_images": frames[1:], "duration": round(1000 / fps), "loop": 0}
    write_bytes_atomic(path, _encoded(frames[0], suffix[1:].upper(), quality=WEBP_QUALITY, **options))


def _spread(frames_THWC: np.ndarray, count: int) -> np.ndarray:
    """At most `count` frames evenly over the video, the first and the last among them."""
    count = min(count, len(frames_THWC))
    return frames_THWC[np.linspace(0, len(frames_THWC) - 1, count).round().astype(int)]


def _shrunk(frame_HWC: np.ndarray, max_side: int) -> Image.Image:
    image = Image.fromarray(frame_HWC)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def _resized(frame_HWC: np.ndarray, height: int) -> Image.Image:
    image = Image.fromarray(frame_HWC)
    if image.height == height:
        return image
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)


def _shortened(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    title = " ".join("".join(char if char.isprintable() else " " for char in title[:MAX_TITLE_CHARS]).split())
    if font.getlength(title) <= width_px:
        return title
    while title and font.getlength(f"{title}…") > width_px:
        title = title[:-1]
    return f"{title}…"


def _encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()
