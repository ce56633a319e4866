"""An mp4 that ends earlier: its index says how much of it is played, and no frame is touched.

A render has 4n+1 frames, so five seconds at 15 fps take 77 where 75 are wanted. The last ones cannot be taken out of
the stream, as frames in front of them refer to them; the edit list, which players follow, leaves them out.

Run: pytest tests/unit/test_media_cut.py
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from sakuga.errors import VideoError, shown

CONTAINERS = (b"moov", b"trak", b"edts")
DURATIONS = {b"mvhd": 16, b"tkhd": 20, b"elst": 8}
"""Boxes with a duration in units of the movie's clock, and how far behind their header it stands in version 0."""
TIMESCALE_OFFSET = 12
"""In mvhd."""


def cut_mp4(path: Path, num_frames: int, fps: float) -> None:
    """Make the file end after so many frames. Raises VideoError for a file that `write_mp4` did not write."""
    data = bytearray(path.read_bytes())
    boxes = dict(_boxes(data, 0, len(data)))
    if not set(DURATIONS) <= set(boxes):
        raise VideoError(f"{shown(path)} has no edit list to shorten; write it with write_mp4")
    (timescale,) = struct.unpack_from(">I", data, boxes[b"mvhd"] + TIMESCALE_OFFSET)
    units = int(num_frames / fps * timescale)  # down: a part of a unit more would show the next frame
    for kind, offset in DURATIONS.items():
        struct.pack_into(">I", data, boxes[kind] + offset, units)
    path.write_bytes(data)


def _boxes(data: bytearray, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Kind of every box and where its content begins, containers opened."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8:  # 64-bit sizes and "to the end of the file", which only mdat has
            return
        yield kind, start + 8
        if kind in CONTAINERS:
            yield from _boxes(data, start + 8, start + size)
        start += size
