"""The README's moving picture: all videos of a demo folder side by side, in the order of its manifest.

python docs/make_picture.py out/demo docs/first_light.webp
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

from sakuga.media import read_video, write_animation

TILE_PX, COLUMNS, GAP_PX, FPS = 224, 3, 6, 15


def main(folder: Path, target: Path) -> None:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    videos = [read_video(folder / f"{row['id']}.mp4") for row in rows]
    num_frames = min(len(video) for video in videos)
    pictures = []
    for index in range(num_frames):
        tiles = [cv2.resize(video[index], (TILE_PX, TILE_PX), interpolation=cv2.INTER_CUBIC) for video in videos]
        framed = [np.pad(tile, ((0, GAP_PX), (0, GAP_PX), (0, 0)), constant_values=255) for tile in tiles]
        bands = [np.concatenate(framed[i : i + COLUMNS], axis=1) for i in range(0, len(framed), COLUMNS)]
        pictures.append(np.concatenate(bands, axis=0)[:-GAP_PX, :-GAP_PX])
    write_animation(target, np.stack(pictures), FPS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
