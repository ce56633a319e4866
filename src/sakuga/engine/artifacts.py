"""The files of a finished render. The receipt is written last: where it exists, the video is whole."""

from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from sakuga.engine.state import Video
from sakuga.media import check_output_dir, save_image, spritesheet_webp, thumbnail_webp, write_json_atomic, write_mp4


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """Where the files of one render are."""

    video: Path
    picture: Path
    """Written for a render of one frame only: that frame, as it is."""
    thumbnail: Path
    sprites: Path
    receipt: Path


def artifact_paths(out_dir: Path, name: str) -> Artifacts:
    """NAME.mp4, NAME.png, NAME.webp, NAME.sprites.webp and NAME.json in `out_dir`."""
    return Artifacts(
        video=out_dir / f"{name}.mp4",
        picture=out_dir / f"{name}.png",
        thumbnail=out_dir / f"{name}.webp",
        sprites=out_dir / f"{name}.sprites.webp",
        receipt=out_dir / f"{name}.json",
    )


def write_render(video: Video, receipt: dict[str, object], out_dir: Path, name: str) -> Artifacts:
    """Write all files, each atomically, the receipt last. Raises OutputError or DiskFullError."""
    check_output_dir(out_dir)
    paths = artifact_paths(out_dir, name)
    # An old receipt must not vouch for a new video that was cut short.
    paths.receipt.unlink(missing_ok=True)
    paths.picture.unlink(missing_ok=True)
    write_mp4(paths.video, video.frames_THWC, video.fps)
    thumbnail_webp(paths.thumbnail, video.frames_THWC)
    sheet = spritesheet_webp(paths.sprites, video.frames_THWC)
    files = {"video": paths.video.name, "thumbnail": paths.thumbnail.name, "sprites": paths.sprites.name}
    if len(video.frames_THWC) == 1:
        save_image(paths.picture, Image.fromarray(video.frames_THWC[0]))
        files["picture"] = paths.picture.name
    write_json_atomic(paths.receipt, receipt | {"files": files, "spritesheet": asdict(sheet)})
    return paths
