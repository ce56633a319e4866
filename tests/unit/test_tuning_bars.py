"""Bars of a gate: what holds, what does not, and how badly written ones are refused."""

import pytest

from sakuga.errors import GateError
from sakuga.tuning.figures import Bar, bars_as_dict, faults, parse_bars


def test_bars_hold_at_their_edges_and_break_beyond():
    bars = parse_bars({"ref_ssim": {"min": 0.9}, "flicker_ratio": {"max": 1.2}})
    assert faults({"ref_ssim": 0.9, "flicker_ratio": 1.2}, bars) == []
    broken = faults({"ref_ssim": 0.8999, "flicker_ratio": 1.21}, bars)
    assert broken == [
        "ref_ssim is 0.8999, at least 0.9 is asked for",
        "flicker_ratio is 1.21, at most 1.2 is allowed",
    ]
    assert parse_bars(bars_as_dict(bars)) == bars


def test_a_gate_may_ask_for_a_speedup():
    bars = parse_bars({"speedup": {"min": 2}})
    assert faults({"speedup": 2.1}, bars) == []
    assert faults({"speedup": 1.9}, bars) == ["speedup is 1.9, at least 2 is asked for"]


@pytest.mark.parametrize("figures", [{}, {"ssim": float("nan")}])
def test_what_was_not_measured_does_not_pass(figures):
    assert faults(figures, [Bar(figure="ssim", minimum=0.1)]) == ["ssim was not measured"]


@pytest.mark.parametrize(
    "written, message",
    [
        (None, "give some"),
        ({}, "give some"),
        ({"ref_sim": {"min": 1}}, "did you mean 'ref_ssim'"),
        ({"ssim": 0.9}, "write {min: X}"),
        ({"ssim": {"least": 0.9}}, "write {min: X}"),
        ({"ssim": {"min": float("nan")}}, "min of ssim is nan; it must be a finite number"),
        ({"ssim": {"min": True}}, "finite number"),
        ({"ssim": {"min": 0.9, "max": 0.1}}, "no video could pass"),
    ],
)
def test_bad_bars_are_refused_in_one_sentence(written, message):
    with pytest.raises(GateError, match=message.replace("{", r"\{").replace("}", r"\}")):
        parse_bars(written)
