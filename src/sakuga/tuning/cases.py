"""The cases that every trial renders and every gate judges: a prompt, a first frame, a seed, perhaps a target.

They are made once for a sweep or a gate and kept beside it, so that all of its renders see the same bytes.

    cases/cases.json    name, fields of a request, target
    cases/NAME.png, cases/NAME.mkv

Run: pytest tests/unit/test_tuning_cases.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from sakuga.errors import SweepError, shown
from sakuga.media import save_image, write_json_atomic
from sakuga.media.lossless import write_lossless
from sakuga.quality.frames import Frames
from sakuga.recipe import IMAGE_ROLES, VIDEO_ROLES
from sakuga.recipe.manifest import ManifestRow, read_manifest
from sakuga.synth import make_sample
from sakuga.training.clips import ClipSpec, cut, plan_clip
from sakuga.training.layouts import read_data, split_of
from sakuga.tuning.sweepfile import Evaluation
from sakuga.wan.weights import file_sha256

INDEX = "cases.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to render, in as many ways as there are trials."""

    name: str
    fields: Mapping[str, object]
    """Of a request: prompt, seed, and pictures by absolute path."""
    target: str | None = None
    """A lossless video of what it should look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSpec:
    """The size that cases are made at."""

    width: int
    height: int
    num_frames: int
    """At most: a render with fewer frames is held to the first ones of the target."""
    fps: int
    takes_image: bool = True
    """Whether the model takes a first frame."""


def cases_of(evaluation: Evaluation, spec: CaseSpec, folder: Path) -> tuple[Case, ...]:
    """The cases, from the folder if they are there. Raises SweepError, DataError, OutputError ..."""
    index = folder / INDEX
    about = {"evaluation": evaluation.model_dump(mode="json"), "spec": asdict(spec)}
    if index.is_file():
        kept = json.loads(index.read_text(encoding="utf-8"))
        if kept["about"] != about:
            raise SweepError(f"{shown(folder)} holds cases of another evaluation; give the sweep another name")
        return tuple(Case(**case) for case in kept["cases"])
    folder.mkdir(parents=True, exist_ok=True)
    cases = [each for case in _made(evaluation, spec, folder) for each in _with_seeds(case, evaluation.seeds)]
    if not cases:
        raise SweepError("the evaluation has no case; its data has no test sample, or its manifest no row")
    write_json_atomic(index, {"about": about, "cases": [asdict(case) for case in cases]})
    return tuple(cases)


def _made(evaluation: Evaluation, spec: CaseSpec, folder: Path) -> Iterator[Case]:
    if evaluation.synth is not None:
        return _drawn(evaluation, spec, folder)
    if evaluation.data is not None:
        return _of_data(evaluation, spec, folder)
    return iter(cases_of_manifest(evaluation))


def _with_seeds(case: Case, seeds: Sequence[int] | None) -> Iterator[Case]:
    if seeds is None:
        yield case
        return
    for seed in seeds:
        yield Case(name=f"{case.name}-s{seed}", fields={**case.fields, "seed": seed}, target=case.target)


def _drawn(evaluation: Evaluation, spec: CaseSpec, folder: Path) -> Iterator[Case]:
    world = evaluation.synth
    assert world is not None
    for seed in range(evaluation.first_seed, evaluation.first_seed + evaluation.count):
        sample = make_sample(
            seed, world, width=spec.width, height=spec.height, num_frames=spec.num_frames, fps=spec.fps
        )
        yield _written(
            f"{world}-{seed}", sample.prompt, seed, Image.fromarray(sample.input_image_HWC), sample.video_THWC, spec,
            folder,
        )  # fmt: skip


def _of_data(evaluation: Evaluation, spec: CaseSpec, folder: Path) -> Iterator[Case]:
    found = read_data(Path(str(evaluation.data)), where=evaluation.where).samples
    splits = split_of([file_sha256(sample.target) for sample in found])
    held_out = [
        sample for sample, split in zip(found, splits, strict=True) if (sample.split or split) == "test"
    ]  # fmt: skip
    clip_spec = ClipSpec(width=spec.width, height=spec.height, num_frames=spec.num_frames, fps=spec.fps)
    for number, sample in enumerate(held_out[: evaluation.count]):
        plan = plan_clip(sample, clip_spec)
        clip = cut(sample, plan, clip_spec, ("input_image",))
        first = clip.images.get("input_image") or Image.fromarray(clip.frames_THWC[0])
        seed = number if sample.seed is None else sample.seed
        yield _written(f"case-{number:03d}", sample.prompt, seed, first, clip.frames_THWC, spec, folder)


def _written(
    name: str, prompt: str, seed: int, first: Image.Image, frames_THWC: Frames, spec: CaseSpec, folder: Path
) -> Case:
    fields: dict[str, object] = {"prompt": prompt, "seed": seed}
    height, width = frames_THWC.shape[1:3]
    if (width, height) != (spec.width, spec.height):  # of another aspect: rendered at its own size
        fields |= {"width": width, "height": height}
    if spec.takes_image:
        picture = (folder / f"{name}.png").resolve()
        save_image(picture, first)
        fields["input_image"] = str(picture)
    target = (folder / f"{name}.mkv").resolve()
    write_lossless(target, frames_THWC, spec.fps)
    return Case(name=name, fields=fields, target=str(target))


def cases_of_manifest(evaluation: Evaluation) -> tuple[Case, ...]:
    """Its first rows. Raises SweepError for the first row that cannot be rendered, ManifestError for the file."""
    manifest = read_manifest(str(evaluation.manifest))
    if manifest.errors:
        first = manifest.errors[0]
        raise SweepError(f"row {first.number} of {shown(manifest.path)}: {first.message}")
    return tuple(_of_row(row, manifest.base_dir) for row in manifest.rows[: evaluation.count])


def _of_row(row: ManifestRow, base_dir: Path) -> Case:
    fields = row.request.model_dump(mode="json", exclude_unset=True, exclude={"id"})
    for role in (*IMAGE_ROLES, *VIDEO_ROLES):
        if fields.get(role) is not None:
            path = (base_dir / fields[role]).resolve()
            if not path.is_file():
                raise SweepError(f"row {row.number} of the manifest names {shown(path)}, which does not exist")
            fields[role] = str(path)
    return Case(name=row.id, fields={**fields, "seed": row.request.seed})
