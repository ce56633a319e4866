"""Fills the cache of a prepared data set: clips become latents and conditioning, texts what the DiT is given of them.

Conditioning goes the way of a render, through `engine.encode`, so that a model is trained on what it will be given.
What the cache has already is not read nor encoded again. No Ray here: `farm/prepare.py` spreads samples over actors.

Shapes as in `training/prepared.py`; B batch of one, T frames, H and W pixels.
Run: pytest tests/unit/test_training_encoding.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from sakuga.engine.encode import Encoded, encode
from sakuga.engine.state import RenderInputs
from sakuga.engine.task import check_task
from sakuga.errors import DataError, ModelError, NumericsError, did_you_mean, shown
from sakuga.media import image_sha256, video_sha256
from sakuga.media.files import sha256_of
from sakuga.recipe import ImageRef, RenderRecipe, VideoRef
from sakuga.training.clips import Clip, ClipPlan, ClipSpec, cut, plan_clip
from sakuga.training.layouts import SourceSample
from sakuga.training.prepared import GIVEN, LatentCache, text_key, video_key
from sakuga.wan.cards import ModelCard
from sakuga.wan.loading import LoadedModel, stdout_to_log

if TYPE_CHECKING:
    from diffsynth.pipelines.wan_video import WanVideoPipeline

ROLES = {
    "t2v": (), "i2v": ("input_image",), "flf2v": ("input_image", "end_image"),
    "control": ("control_video", "input_image", "reference_image"),
    "vace": ("vace_video", "vace_mask", "reference_image"),
}  # fmt: skip
"""What a task takes of a sample. Without an input_image or end_image of its own the target gives its first and last
frame, as DiffSynth's trainer does."""
CONDITIONING = GIVEN | {"first_frame_latents_CThw": "first_frame_latents_BCTHW"}
"""Names in the cache to those of the engine's `Conditioning`."""
TEMPORAL_FACTOR = 4
"""Frames in a latent frame after the first, which holds one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSample:
    """Where a sample's tensors are, and what they are of."""

    video_key: str
    text_key: str
    file_sha256: str
    """Of the target, which decides its split."""
    width: int
    height: int
    num_frames: int
    is_new: bool
    """The video was encoded now, not found in the cache."""
    notes: tuple[str, ...]


def key_of_text(card: ModelCard, file_sha256: Mapping[str, str], text: str) -> str:
    """In the cache; `file_sha256` of the model's files by "part/name"."""
    encoder = ",".join(_part_hashes(file_sha256, "text_encoder", "tokenizer"))
    return text_key(text=text, text_encoder_sha256=encoder, max_tokens=card.tokenizer_max_tokens)


def _part_hashes(file_sha256: Mapping[str, str], *parts: str) -> list[str]:
    return [value for name, value in sorted(file_sha256.items()) if name.partition("/")[0] in parts]


def choose_task(card: ModelCard, asked: str | None, samples: Sequence[SourceSample]) -> str:
    """What the samples are conditioned on: i2v, or the first task of the card that every sample has the files for.

    Raises ModelError for a task that the card does not have, DataError for one that no training data can be made for.
    """
    known = [task for task in card.tasks if task in ROLES]
    if asked is not None:
        if asked not in card.tasks:
            raise ModelError(
                f"{card.name} has no task {shown(asked)}{did_you_mean(asked, known)}; take {', '.join(known)}"
            )
        if asked not in ROLES:
            raise DataError(f"data is not prepared for {asked}; take one of {', '.join(known) or 'another model'}")
        return asked
    for task in sorted(known, key=lambda name: name != "i2v"):
        if all(_missing_role(sample, task) is None for sample in samples):
            return task
    raise DataError(
        f"no task of {card.name} ({', '.join(card.tasks)}) fits what all samples hold; say which with --task: those "
        "that lack something for it are reported"
    )


class SampleEncoder:
    """One model and one cache; samples one after the other, as a clip fills the processor."""

    def __init__(self, model: LoadedModel, cache: LatentCache, spec: ClipSpec, task: str) -> None:
        self._model, self._cache, self._spec, self._task = model, cache, spec, task
        self._dtype = torch.bfloat16 if model.pipe.torch_dtype == torch.bfloat16 else torch.float16

    def encode_text(self, text: str) -> str:
        """Put a text into the cache, the empty one too; its key."""
        key = key_of_text(self._model.card, self._model.file_sha256, text)
        if not self._cache.has("texts", key):
            self._cache.put("texts", key, {"context_LD": trimmed(self._embedded(text)).to("cpu", self._dtype)})
        return key

    @torch.no_grad()
    def encode(self, sample: SourceSample) -> EncodedSample:
        """Put what the cache lacks of a sample into it.

        Raises DataError, VideoError, ImageError, PromptError or GeometryError for a sample that cannot be used,
        NumericsError when its latents are not finite.
        """
        missing = _missing_role(sample, self._task)
        if missing is not None:
            raise DataError(
                f"task {self._task} needs a {missing}, and the sample has none; add it or leave the sample out"
            )
        plan = plan_clip(sample, self._spec)
        file_sha256 = sha256_of(sample.target)
        key = self._video_key(sample, plan, file_sha256)
        is_new = not self._cache.has("videos", key)
        if is_new:
            self._cache.put("videos", key, self._video_tensors(sample, plan))
        return EncodedSample(
            video_key=key, text_key=self.encode_text(sample.prompt), file_sha256=file_sha256, width=plan.width,
            height=plan.height, num_frames=plan.num_frames, is_new=is_new,
            notes=(*sample.notes, *plan.notes, *self._notes(sample)),
        )  # fmt: skip

    def _notes(self, sample: SourceSample) -> list[str]:
        notes = []
        if self._task_of(sample) != self._task:
            notes.append("a still without an input_image: conditioned on its text alone")
        limit = self._model.card.tokenizer_max_tokens
        num_tokens = self._model.pipe.tokenizer(sample.prompt, padding=False, truncation=False).shape[1]
        if num_tokens > limit:
            notes.append(f"the caption has {num_tokens} tokens; the tokenizer stops at {limit}, the rest has no effect")
        return notes

    def _video_key(self, sample: SourceSample, plan: ClipPlan, file_sha256: str) -> str:
        parts = ("vae", "image_encoder") if self._model.card.needs_clip else ("vae",)
        files = {role: sha256_of(path) for role, path in _given(sample, self._task_of(sample)).items()}
        if sample.layers is not None:
            files["layers"] = sha256_of(sample.layers)
        return video_key(
            file=file_sha256, given=files, task=self._task_of(sample), width=plan.width, height=plan.height,
            num_frames=plan.num_frames, fps=self._spec.fps, crop="centre", dtype=str(self._dtype),
            encoders=_part_hashes(self._model.file_sha256, *parts),
        )  # fmt: skip

    def _task_of(self, sample: SourceSample) -> str:
        """A picture whose first frame is given would hold nothing to learn."""
        still = sample.is_picture and "input_image" not in sample.images
        return "t2v" if still and self._task in ("i2v", "flf2v") and "t2v" in self._model.card.tasks else self._task

    def _video_tensors(self, sample: SourceSample, plan: ClipPlan) -> dict[str, torch.Tensor]:
        clip = cut(sample, plan, self._spec, ROLES[self._task_of(sample)])
        recipe, inputs = self._render(sample, clip)
        with stdout_to_log(), _fast_vae(self._model.pipe):
            encoded = encode(self._model.pipe, recipe, inputs)
            latents_CThw = self._latents(clip.frames_THWC)
        latents_CThw = _behind_references(latents_CThw, encoded)
        tensors = {"latents_CThw": latents_CThw, **conditioning_tensors(encoded)}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise NumericsError(f"{name} of {shown(sample.name)} has NaN or infinite values; prepare it in fp32")
        stored = {name: tensor.to("cpu", self._dtype).contiguous() for name, tensor in tensors.items()}
        if clip.layers_THW is not None:
            shares = layer_shares(clip.layers_THW, self._model.card.spatial_factor)
            num_extra = latents_CThw.shape[1] - shares.shape[1]
            stored["layers_GThw"] = torch.nn.functional.pad(shares, (0, 0, 0, 0, num_extra, 0))
        return stored

    def _render(self, sample: SourceSample, clip: Clip) -> tuple[RenderRecipe, RenderInputs]:
        """The render whose conditioning the sample is trained with."""
        card, spec, task = self._model.card, self._spec, self._task_of(sample)
        num_frames, height, width = clip.frames_THWC.shape[:3]
        images, videos = dict(clip.images), clip.videos
        for role, place in (("input_image", 0), ("end_image", -1)):
            if task in ("i2v", "flf2v") and role in ROLES[task] and role not in images:
                images[role] = Image.fromarray(clip.frames_THWC[place])
        recipe = RenderRecipe(
            model=card.name, weights_sha256=self._model.weights_sha256, prompt=sample.prompt, width=width,
            height=height, num_frames=num_frames, fps=spec.fps, num_inference_steps=1, guidance_scale=1.0, seed=0,
            images=tuple(ImageRef(role=role, sha256=image_sha256(image)) for role, image in images.items()),
            videos=tuple(VideoRef(role=role, sha256=video_sha256(video)) for role, video in videos.items()),
        )  # fmt: skip
        check_task(recipe, card)
        return recipe, RenderInputs(images=images, videos=videos)

    def _latents(self, frames_THWC: np.ndarray) -> torch.Tensor:
        pipe = self._model.pipe
        pipe.load_models_to_device(["vae"])
        video_CTHW = torch.from_numpy(frames_THWC).permute(3, 0, 1, 2).to(pipe.device).float() / 127.5 - 1
        return pipe.vae.encode([video_CTHW.to(pipe.torch_dtype)], device=pipe.device)[0]

    @torch.no_grad()
    def _embedded(self, text: str) -> torch.Tensor:
        from diffsynth.pipelines.wan_video import WanVideoUnit_PromptEmbedder

        with stdout_to_log():
            return WanVideoUnit_PromptEmbedder().process(self._model.pipe, text, positive=True)["context"][0]


def layer_shares(layers_THW: np.ndarray, spatial_factor: int) -> torch.Tensor:
    """`layers_GThw`: how much of a latent pixel is a border, inside the figure, or has moved since the frame before."""
    border = np.zeros(layers_THW.shape, bool)
    for dim in (1, 2):
        ahead, behind = (layers_THW.take(range(*ends), dim) for ends in _neighbours(layers_THW.shape[dim]))
        differs = ahead != behind
        fill = [(0, 0)] * 3
        for ends in ((0, 1), (1, 0)):  # both sides of a border belong to it
            fill[dim] = ends
            border |= np.pad(differs, fill)
    moved = np.concatenate([np.zeros_like(border[:1]), layers_THW[1:] != layers_THW[:-1]])
    masks_GTHW = np.stack([border, (layers_THW > 0) & ~border, moved])
    num_masks, num_frames, height, width = masks_GTHW.shape
    blocks = masks_GTHW.reshape(
        num_masks, num_frames, height // spatial_factor, spatial_factor, width // spatial_factor, spatial_factor
    )
    shares_GThw = blocks.mean((3, 5), dtype=np.float32)
    later = shares_GThw[:, 1:].reshape(num_masks, -1, TEMPORAL_FACTOR, *shares_GThw.shape[2:]).mean(2)
    return torch.from_numpy(np.rint(255 * np.concatenate([shares_GThw[:, :1], later], 1)).astype(np.uint8))


def _neighbours(length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (1, length), (0, length - 1)


def trimmed(context_LD: torch.Tensor) -> torch.Tensor:
    """Without the zero rows at the end, of which a prompt of 30 tokens has 482; `batches.py` puts them back."""
    filled = context_LD.ne(0).any(1).nonzero()
    return context_LD[: int(filled.max()) + 1 if len(filled) else 1]


@contextlib.contextmanager
def _fast_vae(pipe: WanVideoPipeline) -> Iterator[None]:
    """The VAE of a model in fp32 computes in bf16 within the block.

    Wan-mini on two cores: 0.20 s a clip of 128x128x33 in place of 1.01; latents differ by 1.0 % (L2, 0.06 at most where
    their deviation is 1), what is decoded from them by 57.9 dB, and it is as far from the clip as before (23.7 dB).
    """
    if pipe.torch_dtype == torch.float32:
        pipe.vae.encode = torch.autocast(torch.device(pipe.device).type, torch.bfloat16)(pipe.vae.encode)
    try:
        yield
    finally:
        vars(pipe.vae).pop("encode", None)


def _missing_role(sample: SourceSample, task: str) -> str | None:
    """What the task cannot do without."""
    if task == "control" and "control_video" not in sample.videos:
        return "control_video"
    if task == "vace" and "vace_video" not in sample.videos and "reference_image" not in sample.images:
        return "vace_video or reference_image"
    return None


def _given(sample: SourceSample, task: str) -> dict[str, Path]:
    return {role: path for role, path in {**sample.images, **sample.videos}.items() if role in ROLES[task]}


def conditioning_tensors(encoded: Encoded) -> dict[str, torch.Tensor]:
    """By the names of the cache, without the batch dimension."""
    given = {name: getattr(encoded.conditioning, field) for name, field in CONDITIONING.items()}
    return {name: tensor[0] for name, tensor in given.items() if tensor is not None}


def _behind_references(latents_CThw: torch.Tensor, encoded: Encoded) -> torch.Tensor:
    """VACE denoises its reference image too, as latent frames in front; its context begins with their latents."""
    context, count = encoded.conditioning.vace_context_BCTHW, encoded.num_reference_frames
    if context is None or not count:
        return latents_CThw
    return torch.cat([context[0, : len(latents_CThw), :count].to(latents_CThw), latents_CThw], 1)
