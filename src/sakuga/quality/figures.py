"""The figures of one render by name: what can be measured without weights, and nothing that could not.

    figures_of(gen_THWC, reference_THWC=best, target_THWC=drawn, prompt="...")["motion_ratio"]

Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_figures.py
"""

import math
from dataclasses import dataclass

from sakuga.errors import VideoError
from sakuga.quality.adherence import adherence
from sakuga.quality.drift import drift
from sakuga.quality.fidelity import psnr, ssim
from sakuga.quality.frames import Frames, check_pair
from sakuga.quality.identity import identity
from sakuga.quality.temporal import Temporal, temporal

MAIN = (
    "flicker", "motion", "warp_error", "drift", "identity", "adherence",
    "ref_psnr_db", "ref_ssim", "flicker_ratio", "motion_ratio", "psnr_db", "ssim",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One render in full: the main figures and what stands behind them."""

    figures: dict[str, float]
    """Those of `MAIN` that have a value, and `drift_slope`, `identity_min`, `frozen_share`, `warp_coverage`; with a
    reference its `ref_flicker` and `ref_motion`."""
    per_frame: dict[str, tuple[float, ...]]
    notes: tuple[str, ...]
    """Why something asked for has no value."""


def figures_of(
    gen_THWC: Frames,
    *,
    reference_THWC: Frames | None = None,
    target_THWC: Frames | None = None,
    prompt: str | None = None,
) -> dict[str, float]:
    """Figures of one render; a key is absent where its figure has no value, and no value is NaN or infinite.

    Always: `flicker` and `motion` together, `warp_error`, `drift`, `identity`; with a synth prompt `adherence`. With a
    reference, the same request rendered without a shortcut: `ref_psnr_db` (at most 100), `ref_ssim`, `flicker_ratio`
    and `motion_ratio`. With a target, the video that was hoped for: `psnr_db`, `ssim`. A ratio is absent where the
    reference has 0, as a frozen one has. Raises VideoError for videos of other sizes, lengths or types.
    """
    found = measured(gen_THWC, reference_THWC=reference_THWC, target_THWC=target_THWC, prompt=prompt).figures
    return {name: found[name] for name in MAIN if name in found}


def measured(
    gen_THWC: Frames,
    *,
    reference_THWC: Frames | None = None,
    target_THWC: Frames | None = None,
    prompt: str | None = None,
) -> Measured:
    """The same, with more of each figure, its frames, and the reasons for gaps."""
    for other_THWC in (reference_THWC, target_THWC):
        if other_THWC is not None:
            check_pair(other_THWC, gen_THWC)
    notes: list[str] = []
    own, away, who = temporal(gen_THWC), drift(gen_THWC), identity(gen_THWC)
    found: dict[str, float | None] = dict(_in_time(own))
    found |= {"frozen_share": own.frozen_share, "warp_coverage": own.warp_coverage}
    found |= {"drift": away.mean, "drift_slope": away.slope}
    found |= {"identity": who.mean, "identity_min": who.min} if who else {}
    if prompt is not None:
        seen = adherence(gen_THWC, prompt)
        found["adherence"] = seen.mean
        notes += [seen.note] if seen.note else []
    if reference_THWC is not None:
        reference = _in_time(temporal(reference_THWC))
        found |= _likeness(reference_THWC, gen_THWC, "ref_", notes)
        for name in ("flicker", "motion"):
            found |= {f"{name}_ratio": ratio(found[name], reference[name]), f"ref_{name}": reference[name]}
    if target_THWC is not None:
        found |= _likeness(target_THWC, gen_THWC, "", notes)
    return Measured(
        figures={name: value for name, value in found.items() if value is not None and math.isfinite(value)},
        per_frame={"drift": away.curve} | ({"identity": who.curve} if who else {}),
        notes=tuple(notes),
    )


def _in_time(measured: Temporal) -> dict[str, float | None]:
    """Flicker only with motion beside it: the one of a frozen video is perfect."""
    flicker = measured.flicker if measured.motion is not None else None
    return {"flicker": flicker, "motion": measured.motion, "warp_error": measured.warp_error}


def _likeness(wanted_THWC: Frames, gen_THWC: Frames, prefix: str, notes: list[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {f"{prefix}psnr_db": psnr(wanted_THWC, gen_THWC).mean_db}
    try:
        return found | {f"{prefix}ssim": ssim(wanted_THWC, gen_THWC).mean}
    except VideoError as error:  # frames smaller than its window
        notes.append(f"{prefix}ssim: {error.message}")
        return found


def ratio(part: float | None, whole: float | None) -> float | None:
    """None where either is not known, or the whole is 0."""
    return part / whole if part is not None and whole else None
