"""How good is a rendered video: fidelity to a reference, and what time does to it. No metric here needs weights.

    report = evaluate_pair(ref_THWC, gen_THWC, fps=15)     # arrays, before any lossy mp4
    result = evaluate_paths("targets/", "renders/")        # files, or folders matched by stem

Full reference: `psnr`, `ssim`, `vmaf`, `xpsnr`. One video alone: `temporal` (flicker, motion, warp error); flicker
never goes without motion, because a frozen video has none of either. `weighted_total` mixes in what people said.
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
from sakuga.quality.filters import VMAF_MODEL, Vmaf, Xpsnr, vmaf, xpsnr
from sakuga.quality.temporal import Temporal, flicker, motion, temporal, warp_error

__all__ = [
    "CAP_DB",
    "VMAF_MODEL",
    "EvaluationReport",
    "Failure",
    "Psnr",
    "Report",
    "Row",
    "Ssim",
    "Temporal",
    "Vmaf",
    "Xpsnr",
    "evaluate_pair",
    "evaluate_paths",
    "flicker",
    "motion",
    "psnr",
    "ssim",
    "temporal",
    "vmaf",
    "warp_error",
    "weighted_total",
    "xpsnr",
]
