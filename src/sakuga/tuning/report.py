"""What a sweep found, for people: a table for the terminal, a recommendation in words, and one HTML page.

The page is self-contained: drawings are SVG, videos are in it, nothing is loaded from elsewhere; it can be mailed.

Run: pytest tests/unit/test_tuning_report.py
"""

from __future__ import annotations

import base64
import importlib.resources
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import jinja2
import numpy as np
import yaml
from rich.table import Table
from scipy import stats

from sakuga.errors import SweepError
from sakuga.media import read_video, write_bytes_atomic, write_mp4
from sakuga.quality.frames import Frames
from sakuga.tuning.cases import INDEX
from sakuga.tuning.charts import Mark, front_svg, levels_svg
from sakuga.tuning.effects import CONFIDENCE, Effect, effects
from sakuga.tuning.figures import DIRECTIONS
from sakuga.tuning.pareto import best_of, equals, front, measured, pooled, recommended
from sakuga.tuning.renders import RenderStore
from sakuga.tuning.space import SHORT, word
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.trials import DONE, SweepFolder, TrialResult

SHOWN_TRIALS = 5
SHOWN_CASES = 2
MAX_SIDE_PX = 320
BESIDE = ("ref_ssim", "ref_psnr_db", "ssim", "psnr_db", "motion_ratio", "flicker", "motion", "seconds", "speedup",
          "heldout_loss", "train_s", "peak_bytes")  # fmt: skip
"""Figures that a table shows beside the objectives, if all trials have them."""
MB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video of the page."""

    title: str
    note: str
    source: str
    """As a data: address."""


def write_report(folder: SweepFolder) -> Path:
    """`report.html` in the sweep's folder. Raises SweepError when no trial has the objectives, OutputError."""
    sweep, results = folder.sweep(), folder.results()
    known = measured(results, sweep.objectives)
    if not known:
        raise SweepError(no_trial(sweep, results))
    best, chosen = front(results, sweep.objectives), recommended(results, sweep.objectives)
    assert chosen is not None
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        importlib.resources.files("sakuga.tuning").joinpath("report.html").read_text("utf-8")
    )
    found = effects(results, sweep.parameters, sweep.objectives)
    columns = _columns(sweep, known)
    page = template.render(
        sweep=sweep,
        counts=_counts(results),
        recommendation=recommendation(sweep, results, found),
        fronts=[(name, _front_svg(sweep, known, chosen, name)) for name in sweep.objectives[1:]],
        columns=columns,
        rows=[
            (result, [_figure(name, result.figures.get(name)) for name in columns])
            for result in _sorted(pooled(results, sweep.objectives), best)
        ],
        front_ids={result.id + str(result.seed) for result in best},
        chosen=chosen,
        effects=[(effect, _effect_svg(effect), effect_words(effect)) for effect in found],
        clips=_clips(folder, best, chosen),
        settings=yaml.safe_dump(sweep.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
    )
    write_bytes_atomic(folder.report, page.encode())
    return folder.report


def table(folder: SweepFolder) -> Table:
    """All trials for the terminal, those of the front first."""
    sweep, results = folder.sweep(), folder.results()
    best = front(results, sweep.objectives)
    chosen = recommended(results, sweep.objectives)
    known = measured(results, sweep.objectives)
    columns = [name for name in _columns(sweep, known) if name in (*sweep.objectives, "speedup")]
    drawn = Table(title=f"{sweep.name}: {_counts(results)}", caption="★ recommended · ● on the front", box=None)
    drawn.add_column("")
    drawn.add_column("trial", no_wrap=True)
    for name in sweep.parameters:
        drawn.add_column(SHORT.get(name, name))
    for name in columns:
        drawn.add_column(name, justify="right")
    for result in _sorted(pooled(results, sweep.objectives), best):
        sign = "★" if result == chosen else "●" if result in best else ""
        values = [word(result.point[name]) if name in result.point else "–" for name in sweep.parameters]
        figures = [_figure(name, result.figures.get(name)) for name in columns]
        drawn.add_row(sign, result.id, *values, *figures, style="dim" if result.state != DONE else None)
    reasons = [f"{result.id} {result.state}: {result.reason}" for result in results if result.reason]
    if reasons:
        drawn.caption = "\n".join([str(drawn.caption), *reasons])
    return drawn


def recommendation(sweep: Sweep, results: Sequence[TrialResult], found: Sequence[Effect]) -> list[str]:
    """Sentences: what to take and why, what else one might take, what made the difference, what is not known."""
    chosen = recommended(results, sweep.objectives)
    if chosen is None:
        return [no_trial(sweep, results)]
    told = [f"Take {chosen.id}: {_settings(chosen)}. {_achieved(sweep, chosen)}"]
    for name in sweep.objectives:
        best = best_of(results, name)
        if best is not None and best.point != chosen.point:
            told.append(f"For {name} alone take {best.id}: {_settings(best)}. {_achieved(sweep, best)}")
    alike = [result for result in equals(results, chosen, sweep.objectives) if result.point != chosen.point]
    if alike:
        named = ", ".join(f"{result.id} ({_settings(result)})" for result in alike[:3])
        told.append(f"About as good in every objective: {named}.")
    clear = [effect_words(effect) for effect in found if effect.is_clear]
    told += clear[:4]
    unclear = sorted({effect.parameter for effect in found} - {effect.parameter for effect in found if effect.is_clear})
    if unclear:
        told.append(f"No clear effect on any objective: {', '.join(unclear)}; more cases or seeds would tell.")
    if sweep.scheduler.name == "asha":
        told.append(
            "ASHA stopped the poor trials, so effects are those of the survivors: a level that lost many looks better."
        )
    if sweep.search.algorithm != "grid":
        told.append(
            "The search chose the points, so an effect may be another parameter's; a grid would tell them apart."
        )
    return told


def effect_words(effect: Effect) -> str:
    """One sentence on a parameter."""
    ups = effect.levels
    best = (max if DIRECTIONS[effect.objective] == "max" else min)(ups, key=lambda level: level.effect)
    worst = (min if DIRECTIONS[effect.objective] == "max" else max)(ups, key=lambda level: level.effect)
    if not effect.is_clear:
        why = "one block only" if effect.num_blocks < 2 else f"over {effect.num_blocks} blocks"
        return f"{effect.parameter} shows no clear effect on {effect.objective} ({why})."
    return (
        f"{effect.parameter} moves {effect.objective}: best at {best.label} ({_figure(effect.objective, best.mean)}), "
        f"worst at {worst.label} ({_figure(effect.objective, worst.mean)}), {effect.num_blocks} blocks."
    )


def no_trial(sweep: Sweep, results: Sequence[TrialResult]) -> str:
    """Why there is nothing to show."""
    reasons = sorted({f"{result.state}: {result.reason}" for result in results if result.reason})
    because = f"; {'; '.join(reasons[:3])}" if reasons else ""
    return f"no trial reported {', '.join(sweep.objectives)} ({_counts(results)}{because})"


def interval(result: TrialResult, figure: str) -> float | None:
    """Half the 95 % interval of a figure's mean over the trial's cases; None for fewer than two, or equal ones."""
    values = [row.figures[figure] for row in result.rows if figure in row.figures]
    if len(values) < 2 or np.ptp(values) < 1e-9 * abs(np.mean(values)):  # rounding is no spread
        return None
    return float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))


def _achieved(sweep: Sweep, result: TrialResult) -> str:
    parts = []
    for name in dict.fromkeys((*sweep.objectives, "speedup")):
        if name in result.figures:
            half = interval(result, name) if name in sweep.objectives else None
            sides = f" ± {_scaled(name, half):.2g}" if half else ""
            words = f"{result.figures[name]:.2f} times as fast as the reference" if name == "speedup" else None
            parts.append(words or f"{name} {_figure(name, result.figures[name])}{sides}")
    return f"It reached {', '.join(parts)}."


def _front_svg(sweep: Sweep, known: Sequence[TrialResult], chosen: TrialResult, other: str) -> str:
    """The front of these two figures; the chosen trial may lie off it when there are more objectives."""
    first = sweep.objectives[0]
    best = front(known, (first, other))
    marks = []
    for result in known:
        kind = "chosen" if result == chosen else "front" if result in best else "other"
        facts = ", ".join(f"{name} {_figure(name, result.figures[name])}" for name in (first, other))
        marks.append(
            Mark(
                x=_scaled(other, result.figures[other]), y=_scaled(first, result.figures[first]), kind=kind,
                label=result.id if kind != "other" else "", tooltip=f"{result.id}: {_settings(result)}; {facts}",
                y_half_width=interval(result, first) if kind == "chosen" else None, is_on_front=result in best,
            )
        )  # fmt: skip
    rows = [row.figures for row in known[0].rows]
    if rows and other == "seconds" and first == "ref_ssim" and all("reference_seconds" in row for row in rows):
        seconds = float(np.median([row["reference_seconds"] for row in rows]))
        marks.append(
            Mark(x=seconds, y=1.0, label="reference", tooltip=f"the reference: {seconds:.2f} s", kind="reference")
        )
    return front_svg(marks, _named(other), _named(first))


def _effect_svg(effect: Effect) -> str:
    rows = [(level.label, level.effect, level.half_width) for level in effect.levels]
    scale = _scaled(effect.objective, 1.0)
    rows = [(label, value * scale, None if half is None else half * scale) for label, value, half in rows]
    return levels_svg(rows, higher_is_better=DIRECTIONS[effect.objective] == "max")


def _clips(folder: SweepFolder, best: Sequence[TrialResult], chosen: TrialResult) -> list[tuple[str, list[Clip]]]:
    """By case: target, reference, then the recommended trial and others of the front."""
    shown = list(dict.fromkeys([chosen.id, *(result.id for result in best)]))[:SHOWN_TRIALS]
    by_id = {result.id: result for result in [*best, chosen]}
    store, targets = RenderStore(folder.renders), _targets(folder)
    found = []
    for row in [each for each in chosen.rows if each.render_key is not None][:SHOWN_CASES]:
        clips = []
        if row.name in targets and Path(targets[row.name]).is_file():
            clips.append(Clip(title="target", note="what it should look like", source=_data(Path(targets[row.name]))))
        if row.reference_key is not None and store.video(row.reference_key).is_file():
            clips.append(
                Clip(title="reference", note="without a shortcut", source=_data(store.video(row.reference_key)))
            )
        for trial in shown:
            same = next((each for each in by_id[trial].rows if each.name == row.name), None)
            if same is not None and same.render_key is not None and store.video(same.render_key).is_file():
                clips.append(
                    Clip(title=trial, note=_settings(by_id[trial]), source=_data(store.video(same.render_key)))
                )
        found.append((row.name, clips))
    return found


def _targets(folder: SweepFolder) -> Mapping[str, str]:
    index = folder.cases / INDEX
    if not index.is_file():
        return {}
    cases = yaml.safe_load(index.read_text(encoding="utf-8"))["cases"]  # JSON is YAML
    return {case["name"]: case["target"] for case in cases if case["target"]}


def _data(video: Path) -> str:
    frames = _small(read_video(video))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, frames, 15)
        return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _small(frames_THWC: Frames) -> Frames:
    height, width = frames_THWC.shape[1:3]
    scale = min(1.0, MAX_SIDE_PX / max(height, width))
    size = max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
    if size == (width, height):
        return frames_THWC
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames_THWC]).astype(np.uint8)


def _sorted(results: Sequence[TrialResult], best: Sequence[TrialResult]) -> list[TrialResult]:
    others = [result for result in results if result not in best]
    return [*best, *sorted(others, key=lambda result: result.state != DONE)]


def _columns(sweep: Sweep, known: Sequence[TrialResult]) -> list[str]:
    beside = [name for name in BESIDE if known and all(name in result.figures for result in known)]
    return list(dict.fromkeys((*sweep.objectives, *beside)))


def _settings(result: TrialResult) -> str:
    return f"{result.words} (seed {result.seed})" if result.seed else result.words


def _counts(results: Sequence[TrialResult]) -> str:
    states = [result.state for result in results]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trials yet"


def _named(figure: str) -> str:
    units = {"seconds": "seconds a video", "peak_bytes": "peak memory, MiB", "train_s": "seconds of training",
             "ref_ssim": "SSIM to the reference", "ref_psnr_db": "PSNR to the reference, dB",
             "heldout_loss": "held-out loss", "ssim": "SSIM to the target",
             "psnr_db": "PSNR to the target, dB"}  # fmt: skip
    arrow = "more is better" if DIRECTIONS[figure] == "max" else "less is better"
    return f"{units.get(figure, figure)} ({arrow})"


def _scaled(figure: str, value: float) -> float:
    return value / MB if figure in ("peak_bytes", "lora_bytes") else value


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in ("peak_bytes", "lora_bytes"):
        return f"{value / MB:.0f} MiB"
    return f"{value:.4f}" if name in ("flicker", "heldout_loss", "warp_error") else f"{value:.4g}"
