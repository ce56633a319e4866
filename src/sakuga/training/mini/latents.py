"""Latents of the training clips, encoded once: the DiT then trains without the VAE.

One safetensors file a clip. The VAE is causal, so a shorter clip is the beginning of a longer one's latents, and only
whole clips are stored. Text is stored as sentences, since the text encoder trains along.

Shapes: C = 16 latent channels, T' latent frames, h and w latent pixels (an eighth of the picture's).
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sakuga.synth import Sample, World, make_sample
from sakuga.synth.dataset import is_test_seed
from sakuga.training.mini.draw import drawn
from sakuga.training.mini.pictures import load_photos, photo_crop
from sakuga.wan.conditioning import known_frames
from sakuga.wan.mini.models import MiniVideoVAE

log = logging.getLogger(__name__)

GEOMETRIES = ((128, 128, 33), (128, 128, 77), (160, 96, 33), (96, 160, 33))
"""Width, height, frames: the default, the five seconds of the mission, wide and tall."""
_EVERY_16 = (0,) * 10 + (1, 2, 2, 3, 3, 1)
PHOTO_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Cached tensors of one clip, fp16."""

    video_CThw: torch.Tensor
    first_CThw: torch.Tensor
    """Encoded first frame followed by grey."""
    both_CThw: torch.Tensor | None
    """Encoded first and last frame with grey between; only some clips have it."""
    figure_Thw: torch.Tensor
    """Share of a latent pixel that the dancer covers, 0..1."""
    prompts: tuple[str, ...]


def geometry_of(seed: int) -> tuple[int, int, int]:
    """Which of `GEOMETRIES` a training seed is drawn in; ten of sixteen are the default."""
    return GEOMETRIES[_EVERY_16[seed % len(_EVERY_16)]]


def draw_clip(seed: int, world: World, photos: list[np.ndarray]) -> Sample:
    """The training sample of a seed; a tenth of the fairies start from a photograph."""
    width, height, num_frames = geometry_of(seed)
    rng = np.random.default_rng((seed, 7))
    photo = photo_crop(photos, rng, width, height) if world == "fairy" and rng.random() < PHOTO_SHARE else None
    return make_sample(seed, world, width=width, height=height, num_frames=num_frames, photo_HWC=photo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What encoding needs of a sample; it travels from the process that drew it."""

    seed: int
    video_THWC: np.ndarray
    figure_Thw: torch.Tensor
    prompts: tuple[str, ...]


def _draw(seed: int, world: World, photos: list[np.ndarray]) -> Drawn:
    sample = draw_clip(seed, world, photos)
    figure = _latent_mask(sample.figure_mask_THW)
    return Drawn(seed=seed, video_THWC=sample.video_THWC, figure_Thw=figure, prompts=sample.prompts)


@torch.no_grad()
def _encode(vae: MiniVideoVAE, videos: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    # bf16: four times as fast on two cores (0.22 s against 0.87 s a clip), and the cache is fp16 anyway.
    with torch.autocast(device.type, torch.bfloat16):
        return vae.model.encode(torch.stack(videos).to(device), vae.scale).to("cpu", torch.float16)


def training_seeds(count: int) -> list[int]:
    """The first `count` seeds that `sakuga synth` does not put into its test split."""
    return list(itertools.islice((seed for seed in itertools.count() if not is_test_seed(seed)), count))


def cache_clips(
    folder: Path,
    vae: MiniVideoVAE,
    seeds: Sequence[int],
    world: World,
    device: torch.device,
    photo_folder: Path | None = None,
    *,
    num_workers: int = 0,
    batch_size: int = 1,
) -> None:
    """Encode what is missing of `seeds` into `folder`, `batch_size` clips of one geometry at a time.

    Can be stopped and run again. Workers draw in their own processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photos = load_photos(photo_folder) if world == "fairy" else []
    missing = [seed for seed in seeds if not (folder / f"{seed}.safetensors").exists()]
    waiting: dict[tuple[int, int, int], list[Drawn]] = defaultdict(list)
    for clip in drawn(partial(_draw, world=world, photos=photos), missing, num_workers):
        group = waiting[geometry_of(clip.seed)]
        group.append(clip)
        if len(group) == batch_size:
            _encode_and_save(folder, vae, group, device)
            group.clear()
        if clip.seed % 50 == 0:
            log.info("cached %s %d of %d", world, clip.seed, seeds[-1])
    for group in waiting.values():
        if group:
            _encode_and_save(folder, vae, group, device)


def _encode_and_save(folder: Path, vae: MiniVideoVAE, clips: Sequence[Drawn], device: torch.device) -> None:
    """One encoding for all videos of clips of one geometry, one file for each clip."""
    videos: dict[tuple[int, str], torch.Tensor] = {}
    for clip in clips:
        video = torch.from_numpy(clip.video_THWC).permute(3, 0, 1, 2).float() / 127.5 - 1
        num_frames, height, width = video.shape[1:]
        first, last = video[:, 0], video[:, -1]
        videos[clip.seed, "video"] = video
        videos[clip.seed, "first"] = known_frames(first, None, num_frames, height, width)
        if clip.seed % 5 == 0:
            videos[clip.seed, "both"] = known_frames(first, last, num_frames, height, width)
    latents = dict(zip(videos, _encode(vae, list(videos.values()), device), strict=True))
    for clip in clips:
        tensors = {name: value.clone() for (seed, name), value in latents.items() if seed == clip.seed}
        tensors["figure"] = clip.figure_Thw
        path = folder / f"{clip.seed}.safetensors"
        aside = path.with_suffix(".tmp")
        save_file(tensors, aside, metadata={"prompts": json.dumps(clip.prompts)})
        aside.rename(path)


def _latent_mask(mask_THW: np.ndarray) -> torch.Tensor:
    """Mean of the mask over what a latent pixel covers: 8 x 8 pixels, one frame at first, then four."""
    small = np.stack([cv2.resize(m.astype(np.float32), (m.shape[1] // 8, m.shape[0] // 8),
                                 interpolation=cv2.INTER_AREA) for m in mask_THW])  # fmt: skip
    rest = small[1:].reshape(-1, 4, *small.shape[1:]).mean(1)
    return torch.from_numpy(np.concatenate([small[:1], rest])).half()


def load_clips(folder: Path) -> list[Clip]:
    """All cached clips, in the order of their seeds."""
    clips = []
    for path in sorted(folder.glob("*.safetensors"), key=lambda p: int(p.stem)):
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            clips.append(
                Clip(
                    video_CThw=file.get_tensor("video"),
                    first_CThw=file.get_tensor("first"),
                    both_CThw=file.get_tensor("both") if "both" in names else None,
                    figure_Thw=file.get_tensor("figure"),
                    prompts=tuple(json.loads(file.metadata()["prompts"])),
                )
            )
    if not clips:
        raise FileNotFoundError(f"no cached clips in {folder}: run the stage 'cache' first")
    return clips
