"""A prepared data set of random latents, small enough that a step of Wan-mini takes hundredths of a second."""

from pathlib import Path

import torch

from sakuga.training.batches import Batches
from sakuga.training.config import TrainConfig
from sakuga.training.prepared import LatentCache, PreparedSample, PreparedSet, text_key, video_key
from sakuga.training.trainer import Trainer
from sakuga.training.world import World
from sakuga.wan.catalogue import card
from sakuga.wan.loading import WeightSet, load_model, locate

CPU = torch.device("cpu")
CARD = card("wan-mini")
GEOMETRIES = ((32, 32, 5), (32, 48, 5), (32, 32, 9))


def weights(tmp_path: Path) -> WeightSet:
    return locate(CARD, None, cache_dir=tmp_path)


def prepared_set(folder: Path, *, num_train: int = 6, num_test: int = 2, layers: bool = False) -> PreparedSet:
    """Written to `folder`; geometries take turns."""
    cache = LatentCache(folder / "cache", folder)
    rng = torch.Generator().manual_seed(5)
    samples = []
    for text in ("", "she dances"):
        length = 1 + len(text)
        key = text_key(text=text, text_encoder_sha256="t", max_tokens=512)
        cache.put("texts", key, {"context_LD": torch.randn(length, CARD.text_encoder.dim, generator=rng).half()})
    for index in range(num_train + num_test):
        width, height, num_frames = GEOMETRIES[index % len(GEOMETRIES)]
        _, c, t, h, w = CARD.latent_shape(width, height, num_frames)
        tensors = {
            "latents_CThw": torch.randn(c, t, h, w, generator=rng).half(),
            "y_CThw": torch.randn(20, t, h, w, generator=rng).half(),
        }
        if layers:
            tensors["layers_GThw"] = torch.randint(0, 256, (3, t, h, w), generator=rng).byte()
        key = video_key(index=index)
        cache.put("videos", key, tensors)
        samples.append(
            PreparedSample(
                name=f"clip{index}.mp4",
                split="train" if index < num_train else "test",
                video_key=key,
                text_key=text_key(text="she dances", text_encoder_sha256="t", max_tokens=512),
                prompt="she dances",
                width=width,
                height=height,
                num_frames=num_frames,
                fps=15.0,
            )
        )
    found = PreparedSet(
        model="wan-mini",
        weights_sha256=weights(folder).sha256,
        task="i2v",
        samples=tuple(samples),
        empty_text_key=text_key(text="", text_encoder_sha256="t", max_tokens=512),
        cache="cache",
    )
    found.write(folder)
    return found


def config(**changes) -> TrainConfig:
    given = {"num_steps": 4, "global_batch_size": 4, "lr": 1e-2, "warmup_steps": 1, "rank": 4, "base_precision": "fp32"}
    return TrainConfig(**(given | changes))


def batches_of(folder: Path, settings: TrainConfig, *, micro_batch_size: int = 8) -> Batches:
    found = PreparedSet.read(folder)
    cache = found.open_cache(folder, folder)
    return Batches(found, cache, settings, CARD, CPU, micro_batch_size=micro_batch_size)


def trainer_of(
    folder: Path, settings: TrainConfig, world: World | None = None, *, micro_batch_size: int = 8, **given
) -> Trainer:
    model = load_model(weights(folder), precision=settings.base_precision, stages=("denoise",))
    batches = batches_of(folder, settings, micro_batch_size=micro_batch_size)
    return Trainer(model, batches, settings, world or World(), **given)
