"""The two drawings of a report, as SVG text: a front of two figures, and the levels of an effect.

Colours and fonts come from the page's style sheet; every mark has its facts as a tooltip.

Run: pytest tests/unit/test_tuning_report.py
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 84, 28, 22, 58
ROW = 26
NUM_TICKS = 5
LABEL_PX, LINE_PX = 76, 15
ORDER = ("other", "reference", "front", "chosen")
"""Of the kinds of marks, the last one drawn over the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One trial of a front."""

    x: float
    y: float
    label: str
    """Beside the mark; empty: none."""
    tooltip: str
    kind: str
    """front, other, chosen or reference: a class of the style sheet."""
    y_half_width: float | None = None
    is_on_front: bool = False
    """Of the chosen trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From figures to pixels."""

    name: str
    low: float
    high: float
    start_px: float
    end_px: float

    @classmethod
    def over(cls, name: str, values: Sequence[float], start_px: float, end_px: float) -> Axis:
        """With a margin, so that no mark lies on the frame."""
        low, high = min(values), max(values)
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(name=name, low=low - margin, high=high + margin, start_px=start_px, end_px=end_px)

    def at(self, value: float) -> float:
        return self.start_px + (value - self.low) / (self.high - self.low) * (self.end_px - self.start_px)

    def ticks(self) -> list[float]:
        """Round numbers, about `NUM_TICKS`."""
        rough = (self.high - self.low) / NUM_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [round(step * n, 12) for n in range(first, math.floor(self.high / step) + 1)]


def front_svg(marks: Sequence[Mark], x_name: str, y_name: str) -> str:
    """A scatter of all trials with a line through those of the front."""
    xs = [mark.x for mark in marks]
    ys = [mark.y + sign * (mark.y_half_width or 0) for mark in marks for sign in (-1, 1)]
    x, y = Axis.over(x_name, xs, LEFT, WIDTH - RIGHT), Axis.over(y_name, ys, HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y)]
    line = sorted((mark for mark in marks if mark.kind == "front" or mark.is_on_front), key=lambda mark: mark.x)
    if len(line) > 1:
        points = " ".join(f"{x.at(mark.x):.1f},{y.at(mark.y):.1f}" for mark in line)
        parts.append(f'<polyline class="line" points="{points}"/>')
    for mark in sorted(marks, key=lambda mark: ORDER.index(mark.kind)):
        parts.append(_mark(mark, x.at(mark.x), y.at(mark.y), y))
    parts += _labels([(mark, x.at(mark.x), y.at(mark.y)) for mark in marks if mark.label])
    title = html.escape(f"{y_name} against {x_name}")
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'


def levels_svg(rows: Sequence[tuple[str, float, float | None]], *, higher_is_better: bool) -> str:
    """Labels with their effects and intervals, around a line at 0."""
    ends = [value + sign * (half or 0) for _, value, half in rows for sign in (-1, 1)] + [0.0]
    width, height = 520, ROW * len(rows) + 34
    axis = Axis.over("", ends, 190, width - 20)
    parts = [f'<line class="zero" x1="{axis.at(0):.1f}" x2="{axis.at(0):.1f}" y1="6" y2="{height - 26}"/>']
    for tick in axis.ticks():
        parts.append(
            f'<text class="tick" x="{axis.at(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:+g}</text>'
        )
    for number, (label, value, half) in enumerate(rows):
        y = ROW * number + 20
        clear = half is not None and abs(value) > half
        kind = "even" if not clear else "good" if (value > 0) == higher_is_better else "bad"
        words = f"{label}: {value:+.4g}" + (f" ± {half:.2g}" if half is not None else ", one block: no interval")
        if half is not None:
            parts.append(f'<line class="interval {kind}" x1="{axis.at(value - half):.1f}" '
                         f'x2="{axis.at(value + half):.1f}" y1="{y}" y2="{y}"/>')  # fmt: skip
        parts.append(f'<text class="label" x="180" y="{y + 4}" text-anchor="end">{html.escape(_short(label))}</text>')
        parts.append(f'<circle class="dot {kind}" cx="{axis.at(value):.1f}" cy="{y}" r="5">'
                     f"<title>{html.escape(words)}</title></circle>")  # fmt: skip
    return f'<svg class="levels" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _grid(x: Axis, y: Axis) -> str:
    parts = []
    for tick in x.ticks():
        at = f"{x.at(tick):.1f}"
        parts.append(f'<line class="grid-line" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{at}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(f'<line class="grid-line" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 10}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(x.name)}</text>')
    parts.append(f'<text class="axis" transform="translate(20 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
                 f'text-anchor="middle">{html.escape(y.name)}</text>')  # fmt: skip
    return "".join(parts)


def _mark(mark: Mark, x_px: float, y_px: float, y: Axis) -> str:
    parts = []
    if mark.y_half_width:
        low, high = y.at(mark.y - mark.y_half_width), y.at(mark.y + mark.y_half_width)
        parts.append(f'<line class="interval even" x1="{x_px:.1f}" x2="{x_px:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    radius = {"chosen": 9, "front": 6, "reference": 7}.get(mark.kind, 4.5)
    parts.append(f'<circle class="dot {mark.kind}" cx="{x_px:.1f}" cy="{y_px:.1f}" r="{radius}">'
                 f"<title>{html.escape(mark.tooltip)}</title></circle>")  # fmt: skip
    return "".join(parts)


def _labels(placed: Sequence[tuple[Mark, float, float]]) -> list[str]:
    """Names beside their marks, the important ones first; one that would lie on another is left to the tooltip."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for mark, x_px, y_px in sorted(placed, key=lambda each: -ORDER.index(each[0].kind)):
        flips = x_px > WIDTH - 190
        start, base = x_px + (-13 - LABEL_PX if flips else 13), y_px - 9
        if any(abs(start - other) < LABEL_PX and abs(base - height) < LINE_PX for other, height in taken):
            continue
        taken.append((start, base))
        parts.append(f'<text class="label" x="{x_px + (-13 if flips else 13):.1f}" y="{base:.1f}" '
                     f'text-anchor="{"end" if flips else "start"}">{html.escape(mark.label)}</text>')  # fmt: skip
    return parts


def _short(text: str, limit: int = 24) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
