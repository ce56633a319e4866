"""What the audits of a version say together: chance does not roll back a good profile, and a worse one goes."""

import numpy as np
import pytest

from sakuga.tuning.audit import audited_bars, standing, verdict
from sakuga.tuning.figures import parse_bars

BARS = parse_bars({"ref_ssim": {"min": 0.88}, "ref_psnr_db": {"min": 24}, "motion_ratio": {"min": 0.8}})
SSIM, PSNR_DB, MOTION = (bar.minimum or 0.0 for bar in audited_bars(BARS))
"""As mp4s have to hold them."""


def drawn(rng: np.random.Generator, num: int, above: float) -> list[dict[str, float]]:
    """Audits of a profile whose means are so many standard deviations above its bars."""
    likeness, moves = rng.normal(above, 1.0, num), rng.normal(above, 1.0, num)
    motions = rng.lognormal(-3.0, 0.5, num)
    return [
        {
            "ref_ssim": SSIM + 0.03 * like, "ref_psnr_db": PSNR_DB + 2.0 * like, "ref_motion": motion,
            "motion": motion * (MOTION + 0.1 * moved), "motion_ratio": MOTION + 0.1 * moved,
        }
        for like, moved, motion in zip(likeness.tolist(), moves.tolist(), motions.tolist(), strict=True)
    ]  # fmt: skip


def rolled_back_after(audits: list[dict[str, float]]) -> int | None:
    """Audits until an active profile is rolled back."""
    looks = (standing(audits[max(0, num - 10) : num], BARS) for num in range(1, len(audits) + 1))
    return next((num for num, look in enumerate(looks, 1) if verdict("active", num, look) == "roll_back"), None)


def test_a_profile_just_above_its_bars_survives_a_hundred_audits():
    """A quarter of a standard deviation: four of ten videos are below each bar."""
    rng = np.random.default_rng(5)
    ends = [rolled_back_after(drawn(rng, 100, 0.25)) for _ in range(100)]
    assert ends.count(None) >= 95, ends


@pytest.mark.parametrize("num_before", [0, 30])
def test_a_profile_that_falls_clearly_below_is_rolled_back_within_ten_audits(num_before):
    rng = np.random.default_rng(6)
    before = [drawn(rng, num_before, 1.5) for _ in range(50)]
    ends = [rolled_back_after(good + drawn(rng, 10, -2.5)) for good in before]
    assert sum(end is not None and end > num_before for end in ends) >= 47, ends


SAME = {"ref_ssim": 0.8, "ref_psnr_db": 30.0}


@pytest.mark.parametrize(
    "state, audits, found",
    [
        ("canary", [], None),
        ("canary", [{"ref_ssim": 0.9}] * 2, None),
        ("canary", [{"ref_ssim": 0.9}] * 3, "activate"),
        ("canary", [{"ref_ssim": 0.95}, {"ref_ssim": 0.95}, {"ref_ssim": 0.7}], "activate"),
        ("canary", [{"ref_ssim": 0.9}, {"ref_ssim": 0.9}, {"ref_ssim": 0.5}], None),
        ("canary", [SAME] * 2, None),
        ("canary", [SAME] * 3, "roll_back"),
        ("active", [SAME] * 2, None),
        ("active", [SAME] * 3, "roll_back"),
        ("active", [{"ref_ssim": 0.9}] * 3, None),
        ("active", [{"ref_ssim": 0.9, "motion_ratio": 0.5}] * 2 + [{"ref_ssim": 0.9}], None),
        ("active", [{"ref_ssim": 0.9, "motion_ratio": 0.5}] * 3 + [{"ref_ssim": 0.9}], "roll_back"),
    ],
)
def test_verdicts(state, audits, found):
    assert verdict(state, len(audits), standing(audits, BARS)) == found


def test_a_bar_from_above_is_passed_clearly_or_not():
    bars = parse_bars({"flicker_ratio": {"max": 1.2}})
    assert standing([{"flicker_ratio": 1.5}] * 3, bars).is_clear
    spread = standing([{"flicker_ratio": 1.1}, {"flicker_ratio": 1.1}, {"flicker_ratio": 2.5}], bars)
    assert spread.faults and not spread.is_clear
    assert not standing([{"flicker_ratio": 1.25}] * 3, bars).faults, "5 % are the codec's"


def test_a_picture_that_hardly_moves_counts_little():
    still = {"motion": 0.0001, "ref_motion": 0.001, "motion_ratio": 0.1}
    moving = {"motion": 0.1, "ref_motion": 0.1, "motion_ratio": 1.0}
    found = standing([still, still, still, moving], BARS)
    assert found.figures["motion_ratio"] == pytest.approx(0.1003 / 0.103) and not found.faults
    frozen = {"motion": 0.0, "ref_motion": 0.1, "motion_ratio": 0.0}
    assert standing([frozen] * 3, BARS).is_clear
    del moving["ref_motion"]  # an audit from before it was kept
    assert standing([still, still, still, moving], BARS).figures["motion_ratio"] == pytest.approx(1.3 / 4)
