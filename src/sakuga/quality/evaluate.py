"""A generated video beside its reference: every metric at once, for arrays, files and folders.

It knows neither models nor Ray. A metric that cannot be had (frames too small, an ffmpeg without the filter) is None
with a note that says why; a file that cannot be read fails alone and the other pairs go on.

Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_evaluate.py
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sakuga.errors import InputError, MetricError, SakugaError, VideoError, shown
from sakuga.quality.adherence import Adherence, adherence
from sakuga.quality.drift import Drift, drift
from sakuga.quality.fidelity import Psnr, Ssim, psnr, ssim
from sakuga.quality.figures import ratio
from sakuga.quality.filters import Vmaf, Xpsnr, vmaf, xpsnr
from sakuga.quality.frames import Frames, check_pair
from sakuga.quality.identity import Identity, identity
from sakuga.quality.temporal import Temporal, temporal

if TYPE_CHECKING:
    from sakuga.quality.learned import LearnedMetric  # which needs torch

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
Figures = dict[str, float | None]
Metric = TypeVar("Metric")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every metric of one pair. None beside a note: could not be measured."""

    num_frames: int
    width: int
    height: int
    psnr: Psnr
    ssim: Ssim | None
    vmaf: Vmaf | None
    xpsnr: Xpsnr | None
    ref: Temporal
    gen: Temporal
    drift: Drift
    identity: Identity | None
    adherence: Adherence | None = None
    """None: no prompt was given."""
    learned: Figures = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def motion_ratio(self) -> float | None:
        """Motion of the generated video over that of the reference; None when the reference does not move."""
        return ratio(self.gen.motion, self.ref.motion)

    def figures(self) -> Figures:
        """One number per name, in the order of a table; `flicker`, `motion`, ... are those of the generated video."""
        found: Figures = {
            "psnr_db": self.psnr.mean_db,
            "psnr_pooled_db": self.psnr.pooled_db,
            "psnr_min_db": self.psnr.min_db,
            "ssim": self.ssim.mean if self.ssim else None,
            "ssim_min": self.ssim.min if self.ssim else None,
            "vmaf": self.vmaf.mean if self.vmaf else None,
            "vmaf_min": self.vmaf.min if self.vmaf else None,
            "xpsnr_db": self.xpsnr.min_db if self.xpsnr else None,
            "xpsnr_y_db": self.xpsnr.y_db if self.xpsnr else None,
            "flicker": self.gen.flicker,
            "motion": self.gen.motion,
            "frozen_share": self.gen.frozen_share,
            "warp_error": self.gen.warp_error,
            "warp_coverage": self.gen.warp_coverage,
            "motion_ratio": self.motion_ratio,
            "flicker_ratio": ratio(self.gen.flicker, self.ref.flicker),
            "drift": self.drift.mean,
            "drift_slope": self.drift.slope,
            "identity": self.identity.mean if self.identity else None,
            "identity_min": self.identity.min if self.identity else None,
            "ref_flicker": self.ref.flicker,
            "ref_motion": self.ref.motion,
            "ref_frozen_share": self.ref.frozen_share,
            "ref_warp_error": self.ref.warp_error,
        }
        return found | ({"adherence": self.adherence.mean} if self.adherence else {}) | self.learned

    def as_dict(self) -> dict[str, object]:
        """For JSON: the figures, what they were measured on, the frames one by one, the notes. No infinity, no NaN."""
        about = {"num_frames": self.num_frames, "width": self.width, "height": self.height}
        model = {"vmaf_model": self.vmaf.model if self.vmaf else None}
        per_frame = {
            "psnr_db": list(self.psnr.per_frame_db),
            "ssim": list(self.ssim.per_frame) if self.ssim else None,
            "vmaf": list(self.vmaf.per_frame) if self.vmaf else None,
            "xpsnr_y_db": list(self.xpsnr.per_frame_y_db) if self.xpsnr else None,
            "drift": list(self.drift.curve),
            "identity": list(self.identity.curve) if self.identity else None,
        }
        return {**self.figures(), **about, **model, "per_frame": per_frame, "notes": list(self.notes)}


class Row(NamedTuple):
    """One pair of a folder: its name without suffix, and what was measured."""

    name: str
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A pair that could not be evaluated, with the error's code and sentence."""

    name: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Every pair of two files or folders, and what was left out."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...] = ()
    only_in_ref: tuple[str, ...] = ()
    only_in_gen: tuple[str, ...] = ()

    def mean(self) -> Figures:
        """Mean over the pairs that have the figure; None where none has. A minimum's mean is the mean of minima.

        A ratio is that of the means: the mean of ratios belongs to the pair that hardly moves.
        """
        columns = [row.report.figures() for row in self.rows]
        names = dict.fromkeys(name for figures in columns for name in figures)  # only some pairs have a prompt
        means = {name: _mean([figures.get(name) for figures in columns]) for name in names}
        if means:
            means |= {f"{name}_ratio": ratio(means[name], means[f"ref_{name}"]) for name in ("motion", "flicker")}
        return means

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "rows": [{"name": row.name, **row.report.as_dict()} for row in self.rows],
            "mean": self.mean(),
            "failed": [{"name": f.name, "code": f.code, "message": f.message} for f in self.failures],
            "only_in_ref": list(self.only_in_ref),
            "only_in_gen": list(self.only_in_gen),
        }


def weighted_total(subjective: float, psnr_db: float, ssim: float) -> float:
    """The article's total: half what people said (0 to 20), a quarter PSNR (per 50 dB), a quarter SSIM.

    Kept to the letter, so that totals can be compared: above 50 dB it passes 1, and identical videos, which have our
    cap of 100 dB, get 1.25. Raises InputError for a subjective score outside 0 to 20, an SSIM outside -1 to 1, or NaN.

    >>> weighted_total(16, psnr_db=30, ssim=0.9)
    0.775
    """
    if not 0.0 <= subjective <= 20.0:
        raise InputError(f"the subjective score is {subjective}, but the total takes 0 to 20")
    if not (math.isfinite(psnr_db) and -1.0 <= ssim <= 1.0):
        raise InputError(f"PSNR {psnr_db} dB and SSIM {ssim} cannot be mixed: PSNR must be finite and SSIM -1 to 1")
    return subjective / 20.0 * 0.5 + psnr_db / 50.0 * 0.25 + ssim * 0.25


def evaluate_pair(
    ref_THWC: Frames,
    gen_THWC: Frames,
    fps: float = 15.0,
    *,
    prompt: str | None = None,
    learned: Sequence["LearnedMetric"] = (),
) -> Report:
    """Every metric of two videos of one size and length.

    Raises VideoError when they cannot be compared. What a metric itself cannot do ends as None and a note.
    """
    check_pair(ref_THWC, gen_THWC)
    notes: list[str] = []
    num_frames, height, width, _ = ref_THWC.shape
    adheres = adherence(gen_THWC, prompt, fps) if prompt is not None else None
    notes += [adheres.note] if adheres and adheres.note else []
    return Report(
        num_frames=num_frames,
        width=width,
        height=height,
        psnr=psnr(ref_THWC, gen_THWC),
        ssim=_try(notes, "ssim", lambda: ssim(ref_THWC, gen_THWC)),
        vmaf=_try(notes, "vmaf", lambda: vmaf(ref_THWC, gen_THWC, fps)),
        xpsnr=_try(notes, "xpsnr", lambda: xpsnr(ref_THWC, gen_THWC, fps)),
        ref=temporal(ref_THWC),
        gen=temporal(gen_THWC),
        drift=drift(gen_THWC),
        identity=identity(gen_THWC),
        adherence=adheres,
        learned=learned_figures(learned, gen_THWC, ref_THWC, prompt, notes),
        notes=tuple(notes),
    )


def learned_figures(
    metrics: Sequence["LearnedMetric"],
    gen_THWC: Frames,
    wanted_THWC: Frames | None,
    prompt: str | None,
    notes: list[str],
) -> Figures:
    """What each learned metric says of a case; it also takes the case into its figure of the whole set."""
    found = {m.name: _try(notes, m.name, lambda m=m: m.of_case(gen_THWC, wanted_THWC, prompt)) for m in metrics}
    return {name: value for name, value in found.items() if value is not None}


def _try(notes: list[str], name: str, measure: Callable[[], Metric]) -> Metric | None:
    try:
        return measure()
    except (MetricError, VideoError) as error:
        logger.warning("%s not measured: %s", name, error.message)
        notes.append(f"{name}: {error.message}")
        return None


def evaluate_paths(
    ref_path: str | Path,
    gen_path: str | Path,
    *,
    prompts: Mapping[str, str] | None = None,
    learned: Sequence["LearnedMetric"] = (),
) -> EvaluationReport:
    """Compare two video files, or two folders whose videos have the same name without suffix.

    `prompts` are by the name without suffix. Frames are those of the files: with mp4, the codec's loss is a part of the
    figures. Folders are not searched deeply.
    In folders a pair that fails is listed in `failures`. Two files that fail, and folders with nothing in common, raise
    VideoError.
    """
    ref, gen = Path(ref_path), Path(gen_path)
    for path in (ref, gen):
        if not path.exists():
            raise VideoError(f"{shown(path)} does not exist: give a video file or a folder of them")
    if ref.is_dir() != gen.is_dir():
        raise VideoError(f"{shown(ref)} and {shown(gen)} are a file and a folder: give two files or two folders")
    known = prompts or {}
    if not ref.is_dir():
        alone = _evaluate_files(ref, gen, known.get(gen.stem), learned)
        return EvaluationReport(rows=(Row(name=gen.stem, report=alone),))

    refs, gens = videos_in(ref), videos_in(gen)
    names = [name for name in refs if name in gens]
    if not names:
        raise VideoError(
            f"no video in {shown(ref)} ({_some(refs)}) has the name of one in {shown(gen)} ({_some(gens)}): "
            "they are matched by file name without suffix"
        )
    rows: list[Row] = []
    failures: list[Failure] = []
    for name in names:
        try:
            rows.append(Row(name=name, report=_evaluate_files(refs[name], gens[name], known.get(name), learned)))
        except SakugaError as error:
            logger.warning("pair failed name=%s code=%s: %s", name, error.code, error.message)
            failures.append(Failure(name=name, code=error.code, message=error.message))
    return EvaluationReport(
        rows=tuple(rows),
        failures=tuple(failures),
        only_in_ref=tuple(name for name in refs if name not in gens),
        only_in_gen=tuple(name for name in gens if name not in refs),
    )


def _evaluate_files(ref: Path, gen: Path, prompt: str | None, learned: Sequence["LearnedMetric"]) -> Report:
    from sakuga.media import read_video, video_info  # here, so that arrays can be measured where there is no PIL

    ref_fps = video_info(ref).fps
    report = evaluate_pair(read_video(ref), read_video(gen), ref_fps, prompt=prompt, learned=learned)
    gen_fps = video_info(gen).fps
    if math.isclose(ref_fps, gen_fps, rel_tol=0.01):  # 29.97 beside 30 is one rate
        return report
    note = f"frame rates differ ({ref_fps:g} and {gen_fps:g} per second): frames were compared one by one all the same"
    logger.warning("%s", note)
    return replace(report, notes=(*report.notes, note))


def videos_in(folder: Path) -> dict[str, Path]:
    """Videos of a folder by stem, sorted; two with one stem are an error, because either could be meant."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise VideoError(
                f"{shown(folder)} has {shown(found[path.stem].name)} and {shown(path.name)}, which both match "
                f"{shown(path.stem)}: keep one"
            )
        found[path.stem] = path
    return found


def _some(videos: Mapping[str, Path]) -> str:
    names = sorted(videos)
    if not names:
        return "no videos"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name) for name in names[:3]) + more


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
