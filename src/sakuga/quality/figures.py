"""The figures of one render by name: what can be measured without weights, and nothing that could not.

    figures_of(gen_THWC, reference_THWC=best, target_THWC=drawn, prompt="...")["motion_ratio"]

Shapes: T frames, H, W, C = 3 (RGB).     Run: pytest tests/unit/test_quality_figures.py
"""

import logging
import math

from sakuga.errors import VideoError
from sakuga.quality.adherence import adherence
from sakuga.quality.drift import drift
from sakuga.quality.fidelity import psnr, ssim
from sakuga.quality.frames import Frames, check_pair
from sakuga.quality.identity import identity
from sakuga.quality.temporal import Temporal, temporal

logger = logging.getLogger(__name__)


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
    for other_THWC in (reference_THWC, target_THWC):
        if other_THWC is not None:
            check_pair(other_THWC, gen_THWC)
    own, who = temporal(gen_THWC), identity(gen_THWC)
    found: dict[str, float | None] = dict(_in_time(own))
    found |= {"drift": drift(gen_THWC).mean, "identity": who.mean if who else None}
    if prompt is not None:
        found["adherence"] = adherence(gen_THWC, prompt).mean
    if reference_THWC is not None:
        reference = _in_time(temporal(reference_THWC))
        found |= _likeness(reference_THWC, gen_THWC, "ref_")
        found |= {f"{name}_ratio": ratio(found[name], reference[name]) for name in ("flicker", "motion")}
    if target_THWC is not None:
        found |= _likeness(target_THWC, gen_THWC, "")
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _in_time(measured: Temporal) -> dict[str, float | None]:
    """Flicker only with motion beside it: the one of a frozen video is perfect."""
    flicker = measured.flicker if measured.motion is not None else None
    return {"flicker": flicker, "motion": measured.motion, "warp_error": measured.warp_error}


def _likeness(wanted_THWC: Frames, gen_THWC: Frames, prefix: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {f"{prefix}psnr_db": psnr(wanted_THWC, gen_THWC).mean_db}
    try:
        return found | {f"{prefix}ssim": ssim(wanted_THWC, gen_THWC).mean}
    except VideoError as error:  # frames smaller than its window
        logger.info("%sssim not measured: %s", prefix, error.message)
        return found


def ratio(part: float | None, whole: float | None) -> float | None:
    """None where either is not known, or the whole is 0."""
    return part / whole if part is not None and whole else None
