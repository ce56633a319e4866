"""How good is a rendered video: fidelity to a reference, what time does to it, what people say. Weights are optional.

    figures_of(gen_THWC, reference_THWC=best)["motion_ratio"]       # one render, numbers by name
    report_on([Case(name="jump", gen=gen_THWC, target=drawn)])      # a set, with confidence intervals
    evaluate_paths("targets/", "renders/")                          # files, or folders matched by stem

Full reference: `psnr`, `ssim`, `vmaf`, `xpsnr`. One video alone: `temporal` (flicker, motion, warp error), `drift`,
`identity`, `adherence`; flicker never goes without motion, because a frozen video has none of either. `learned` has
metrics with weights from local files, `ratings` what raters said, and `weighted_total` mixes that in.
"""

from sakuga.quality.evaluate import (
    EvaluationReport,
    Failure,
    Report,
    Row,
    evaluate_pair,
    evaluate_paths,
    weighted_total,
)
from sakuga.quality.fidelity import CAP_DB, Psnr, Ssim, psnr, ssim
from sakuga.quality.figures import figures_of
from sakuga.quality.filters import VMAF_MODEL, Vmaf, Xpsnr, vmaf, xpsnr
from sakuga.quality.report import Case, CaseReport, Interval, SetReport, report_of_pairs, report_on
from sakuga.quality.temporal import Temporal, flicker, motion, temporal, warp_error

__all__ = [
    "CAP_DB",
    "VMAF_MODEL",
    "Case",
    "CaseReport",
    "EvaluationReport",
    "Failure",
    "Interval",
    "Psnr",
    "Report",
    "Row",
    "SetReport",
    "Ssim",
    "Temporal",
    "Vmaf",
    "Xpsnr",
    "evaluate_pair",
    "evaluate_paths",
    "figures_of",
    "flicker",
    "motion",
    "psnr",
    "report_of_pairs",
    "report_on",
    "ssim",
    "temporal",
    "vmaf",
    "warp_error",
    "weighted_total",
    "xpsnr",
]
