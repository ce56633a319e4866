"""A prepared data set: which latents and texts are its samples, and the content-addressed cache that holds them.

    OUT/prepared.json       the samples: their split, geometry, prompt and keys; which model they were encoded for
    OUT/report.json         every file that was read, with what became of it and why
    OUT/contact_sheet.png
    CACHE/videos/KEY.safetensors, CACHE/texts/KEY.safetensors       OUT/cache, another folder or s3://bucket/prefix

A key is the sha256 of all that decides the content, so an entry is written once, by whoever comes first, and shared by
every data set and every trial of a sweep. `training/encoding.py` fills the cache, `training/batches.py` reads it.

Shapes: C latent channels, T latent frames, h and w latent pixels, L text tokens without padding, D width, G = 3 layers.
Run: pytest tests/unit/test_training_prepared.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sakuga.errors import ConflictError, DataError, NotFoundError, OutputError, shown
from sakuga.media import write_json_atomic
from sakuga.storage.objects import ObjectStore, open_objects

FORMAT = 1
"""Of what is cached under a key; a change of the encoding raises it, and nothing old is found any more."""
INDEX_NAME = "prepared.json"
SPLITS = ("train", "test")
LAYERS = ("shape", "colour", "motion")
"""Where a loss can be heavier: at borders of a picture's layers, within the figure, where a layer has moved."""
GIVEN = {
    "y_CThw": "y_BCTHW",
    "clip_feature_LD": "clip_feature_BLD",
    "reference_latents_CThw": "reference_latents_BCTHW",
    "vace_context_CThw": "vace_context_BCTHW",
    "control_camera_CThw": "control_camera_BCTHW",
    "motion_modulation_6D": "motion_modulation_B6D",
}
"""Tensors that a model is given beside latents and text, by the names of `DitForward` and of `Conditioning`."""
VIDEO_TENSORS = ("latents_CThw", *GIVEN, "first_frame_latents_CThw", "layers_GThw")
"""What `videos/KEY.safetensors` may hold. `layers_GThw` are uint8 shares of 255 in the order of `LAYERS`, the others
fp16 or bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSample:
    """One clip or picture with its text."""

    name: str
    """As the user knows it: its path in the data set."""
    split: str
    """"train" or "test"."""
    video_key: str
    text_key: str
    prompt: str
    width: int
    height: int
    num_frames: int
    fps: float
    seed: int | None = None
    """Of a drawn sample, so that its target can be drawn again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSet:
    """All samples of a data set, encoded for one model."""

    model: str
    weights_sha256: str
    """Of the card's files when it was encoded; training on others is refused."""
    task: str
    """What the samples are conditioned on, a task of the card: t2v, i2v ..."""
    samples: tuple[PreparedSample, ...]
    empty_text_key: str
    """Of the empty prompt, which takes the place of a text now and then."""
    cache: str
    """Address of the cache; relative to the folder of the index."""

    def of(self, split: str) -> tuple[PreparedSample, ...]:
        return tuple(sample for sample in self.samples if sample.split == split)

    @property
    def content_sha256(self) -> str:
        """Of all keys in order: what a resumed run must find again."""
        keys = [(sample.split, sample.video_key, sample.text_key) for sample in self.samples]
        return hashlib.sha256(json.dumps([self.model, self.weights_sha256, keys]).encode()).hexdigest()

    def write(self, folder: Path) -> Path:
        """The index, whole or not at all. Raises OutputError."""
        path = folder / INDEX_NAME
        write_json_atomic(path, {"format": FORMAT, **dataclasses.asdict(self)})
        return path

    @classmethod
    def read(cls, folder: Path) -> PreparedSet:
        """Raises DataError when there is none, or one of another format."""
        path = folder / INDEX_NAME
        if not path.is_file():
            raise DataError(f"{shown(folder)} holds no {INDEX_NAME}; run `sakuga prepare` and name its --out folder")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            found = fields.pop("format")
            if found != FORMAT:
                raise DataError(f"{shown(path)} has format {found} and this Sakuga reads {FORMAT}; prepare it again")
            fields["samples"] = tuple(PreparedSample(**sample) for sample in fields["samples"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{shown(path)} is damaged ({error}); prepare the data set again") from error

    def open_cache(self, folder: Path, local: Path, endpoint_url: str | None = None) -> LatentCache:
        """The cache of the index that lies in `folder`; `local` keeps what comes from S3."""
        address = self.cache if "://" in self.cache else str(folder / self.cache)
        return LatentCache(address, local, endpoint_url=endpoint_url)


class LatentCache:
    """Tensors by key, in a folder or on S3; no pickle."""

    def __init__(self, address: str | Path, local: Path, *, endpoint_url: str | None = None) -> None:
        """`local`: a folder of this machine for copies of what lies on S3."""
        self.address = str(address)
        self._objects: ObjectStore = open_objects(address, endpoint_url=endpoint_url)
        self._local = local if "://" in self.address else Path(self.address)

    def has(self, kind: str, key: str) -> bool:
        """`kind` is "videos" or "texts"."""
        name = _name(kind, key)
        return (self._local / name).is_file() or bool(self._objects.names(name))

    def put(self, kind: str, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store an entry. One that is there already stays: the same key means the same content up to rounding.

        Raises OutputError, DiskFullError or StorageError when it cannot be written.
        """
        aside = self._local / "new" / f"{key}.{secrets.token_hex(8)}.safetensors"
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous() for name, value in tensors.items()}, aside)
        except (SafetensorError, OSError) as error:
            aside.unlink(missing_ok=True)
            reason = f"{shown(aside.parent)} cannot be written ({shown(error)})"
            raise OutputError(f"{reason}; free some space there or name another folder") from error
        try:
            self._objects.put(_name(kind, key), aside)
        except ConflictError:
            pass
        finally:
            aside.unlink(missing_ok=True)

    def get(self, kind: str, key: str) -> dict[str, torch.Tensor]:
        """Raises DataError when it is not there or damaged, StorageError when S3 does not answer."""
        path = self._local / _name(kind, key)
        try:
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._objects.get(_name(kind, key), path)
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except NotFoundError as error:
            raise DataError(f"{kind}/{key[:12]} is not in the cache {self.address}; prepare the data again") from error
        except (SafetensorError, OSError) as error:
            raise DataError(f"{shown(path)} is damaged ({error}); delete it and prepare the data again") from error


def video_key(**facts: object) -> str:
    """Of a video's latents: the hashes of the files that it is made from, VAE, size, frames, crop and frame rate."""
    return _key({"kind": "video", **facts})


def text_key(*, text: str, text_encoder_sha256: str, max_tokens: int) -> str:
    return _key({"kind": "text", "text": text, "text_encoder": text_encoder_sha256, "max_tokens": max_tokens})


def _key(facts: Mapping[str, object]) -> str:
    canonical = json.dumps({"format": FORMAT, **facts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _name(kind: str, key: str) -> str:
    assert kind in ("videos", "texts"), kind
    return f"{kind}/{key}.safetensors"
