"""Pictures and videos in and out: untrusted files are read with limits, results are written whole or not at all.

`images` reads untrusted pictures, `video` reads and writes videos through the ffmpeg of imageio-ffmpeg, `sheets` draws
thumbnails, spritesheets, contact sheets and animations, `files` writes atomically. Nothing here knows a model.

Shapes: T frames, H height, W width, C colour (RGB, uint8).     Run the tests: pytest tests/unit -k media
"""

from sakuga.media.files import atomic_file, check_output_dir, write_bytes_atomic, write_json_atomic
from sakuga.media.images import MAX_PIXELS, fit_image, image_sha256, load_image
from sakuga.media.sheets import (
    SpriteSheet,
    contact_sheet,
    save_image,
    spritesheet_webp,
    thumbnail_webp,
    write_animation,
)
from sakuga.media.video import VideoInfo, frame_times, read_video, video_info, video_sha256, write_mp4

__all__ = [
    "MAX_PIXELS",
    "SpriteSheet",
    "VideoInfo",
    "atomic_file",
    "check_output_dir",
    "contact_sheet",
    "fit_image",
    "frame_times",
    "image_sha256",
    "load_image",
    "read_video",
    "save_image",
    "spritesheet_webp",
    "thumbnail_webp",
    "video_info",
    "video_sha256",
    "write_animation",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_mp4",
]
