"""The figures that trials, gates and audits report, and which way each is better.

    psnr_db, ssim                   against the target, where there is one
    ref_psnr_db, ref_ssim           against the same recipe rendered the reference way
    flicker_ratio, motion_ratio     over those of the reference render; a frozen video has little of either
    seconds, peak_bytes             of one video, on the machine that measured
    speedup                         how often the reference takes as long

Run: pytest tests/unit/test_tuning_bars.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sakuga.errors import GateError, did_you_mean, shown

DIRECTIONS = {
    "psnr_db": "max",
    "ssim": "max",
    "ref_psnr_db": "max",
    "ref_ssim": "max",
    "weighted_total": "max",
    "identity": "max",
    "adherence": "max",
    "motion": "max",
    "motion_ratio": "max",
    "flicker": "min",
    "flicker_ratio": "min",
    "warp_error": "min",
    "drift": "min",
    "heldout_loss": "min",
    "seconds": "min",
    "speedup": "max",
    "denoise_s": "min",
    "train_s": "min",
    "peak_bytes": "min",
    "lora_bytes": "min",
}
"""By name: whether more ("max") or less ("min") is better."""

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a figure must reach, or must not pass."""

    figure: str
    minimum: float | None = None
    maximum: float | None = None

    def fault(self, figures: Figures) -> str | None:
        """Why the figures do not hold the bar; None when they do.

        >>> Bar(figure="ref_ssim", minimum=0.9).fault({"ref_ssim": 0.874})
        'ref_ssim is 0.874, at least 0.9 is asked for'
        """
        value = figures.get(self.figure)
        if value is None or not math.isfinite(value):
            return f"{self.figure} was not measured"
        if self.minimum is not None and value < self.minimum:
            return f"{self.figure} is {value:.4g}, at least {self.minimum:g} is asked for"
        if self.maximum is not None and value > self.maximum:
            return f"{self.figure} is {value:.4g}, at most {self.maximum:g} is allowed"
        return None


def parse_bars(written: object) -> tuple[Bar, ...]:
    """Bars as a gate file has them: {"ref_psnr_db": {"min": 30}, "flicker_ratio": {"max": 1.2}}. Raises GateError."""
    if not isinstance(written, Mapping) or not written:
        raise GateError(f"bars are {shown(written)}; give some, such as ref_ssim: {{min: 0.9}}")
    return tuple(_bar(str(name), limits) for name, limits in written.items())


def bars_as_dict(bars: Sequence[Bar]) -> dict[str, dict[str, float]]:
    """The way back."""
    sides = {bar.figure: {"min": bar.minimum, "max": bar.maximum} for bar in bars}
    return {
        figure: {side: value for side, value in limits.items() if value is not None} for figure, limits in sides.items()
    }


def faults(figures: Figures, bars: Sequence[Bar]) -> list[str]:
    """One sentence for each bar that does not hold."""
    return [fault for bar in bars if (fault := bar.fault(figures)) is not None]


def _bar(name: str, limits: object) -> Bar:
    if name not in DIRECTIONS:
        raise GateError(f"bars has no figure {shown(name)}{did_you_mean(name, DIRECTIONS)}")
    if not isinstance(limits, Mapping) or not limits or not set(limits) <= {"min", "max"}:
        raise GateError(f"the bar of {name} is {shown(limits)}; write {{min: X}}, {{max: X}} or both")
    numbers = {str(side): _number(f"{side} of {name}", value) for side, value in limits.items()}
    bar = Bar(figure=name, minimum=numbers.get("min"), maximum=numbers.get("max"))
    if bar.minimum is not None and bar.maximum is not None and bar.minimum > bar.maximum:
        raise GateError(f"the bar of {name} has min {bar.minimum:g} above max {bar.maximum:g}; no video could pass")
    return bar


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise GateError(f"{what} is {shown(value)}; it must be a finite number")
    return float(value)
