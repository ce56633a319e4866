"""Audits of promoted profiles: renders of users, rendered once more the reference way and held to the gate's bars.

The gate compares frames, an audit has the mp4s of both sides, and the codec costs likeness: its share, measured, is
taken off the bars (`in_mp4`). Bars are of means, and single videos of a good profile miss them; so a version is judged
by its last audits together, and goes when chance does not explain that their mean misses.

All that is known of an audit stands in the job store, so whoever goes on after a crash does the same steps; a reference
is submitted under the audit's id as its idempotency key.

Run: pytest tests/unit/test_tuning_audit.py tests/unit/test_tuning_verdicts.py
"""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sakuga.errors import NotFoundError, SakugaError, VideoError
from sakuga.jobstore import AUDIT_TENANT, Audit, Idempotency, Job, NewJob, ProfileEntry, Stores
from sakuga.jobstore.profiles import CANARY, RETIRED, ROLLED_BACK
from sakuga.media import read_video
from sakuga.quality.figures import measured
from sakuga.quality.frames import Frames
from sakuga.storage.objects import ObjectStore
from sakuga.tuning.figures import Bar, Figures, faults
from sakuga.tuning.profiles import SpeedProfile

logger = logging.getLogger(__name__)

AUDITED = ("ref_psnr_db", "ref_ssim", "flicker_ratio", "motion_ratio", "flicker", "motion", "warp_error")
"""Figures whose bars an audit can judge; seconds and likeness to a target are the gate's alone."""
KEPT = (*AUDITED, "ref_flicker", "ref_motion")
"""With those, ratios of means can be made."""
CODEC_PSNR_DB, CODEC_SSIM = 38.5, 0.965
"""What the codec leaves: an mp4 has 38.8 dB to its own frames, and of the SSIM of two videos their mp4s keep 0.968, the
worst of eight pairs by Wan-mini at 128x128 and 17 frames. Large pictures lose less; audits of them are a bit kinder."""
TIME_TOLERANCE = 0.05
"""Of a bar on what time does: in the same pairs ratios moved by 2.4 %, motion by 3.2 %; flicker only falls, by 10 %."""
NUM_PASSED = 3
"""So many, whose means hold the bars, and a version in canary becomes active."""
NUM_JUDGED = 10
"""The last ones are judged together; of more, the good ones from before would hide a drift."""
NUM_DECIDING = 3
"""With fewer nothing is rolled back."""
CONFIDENCE = 0.999
"""One-sided, of one look at a mean. There is one after each audit: of 100 profiles that are just as good as their bar,
79 would be gone after 100 audits with 0.95, and 5 with this (simulated); of 100 that are two standard deviations worse
95 are gone after 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRules:
    """What an operator decides."""

    is_on: bool = True
    max_running: int = 0
    """Renders of a model that may run when a reference is begun; nothing may wait. 0: its lanes are idle."""
    num_passed: int = NUM_PASSED


def reference_job(job: NewJob) -> NewJob:
    """As low as work can be."""
    return replace(job, tenant=AUDIT_TENANT, priority="batch")


def audited_bars(bars: Sequence[Bar]) -> list[Bar]:
    """Those that an audit can judge, as mp4s have to hold them."""
    return [in_mp4(bar) for bar in bars if bar.figure in AUDITED]


def in_mp4(bar: Bar) -> Bar:
    """A bar on frames as what two mp4s of such frames can reach.

    Likeness: the codec's error is added once, not twice, since it errs alike on pictures that are alike (measured:
    41.2 dB become 37.3, 34.1 become 33.0).

    >>> round(in_mp4(Bar(figure="ref_psnr_db", minimum=34.1)).minimum, 1)
    32.8
    >>> round(in_mp4(Bar(figure="ref_ssim", minimum=0.9)).minimum, 2)
    0.87
    """
    if bar.figure == "ref_psnr_db" and bar.minimum is not None:
        noise = 10 ** (-bar.minimum / 10) + 10 ** (-CODEC_PSNR_DB / 10)
        return replace(bar, minimum=-10 * math.log10(noise))
    if bar.figure == "ref_ssim" and bar.minimum is not None:
        return replace(bar, minimum=bar.minimum * CODEC_SSIM)
    lower = None if bar.minimum is None else bar.minimum * (1 - TIME_TOLERANCE)
    upper = None if bar.maximum is None else bar.maximum * (1 + TIME_TOLERANCE)
    return replace(bar, minimum=lower, maximum=upper)


def judged(gen_THWC: Frames, reference_THWC: Frames, bars: Sequence[Bar]) -> tuple[dict[str, float], list[str]]:
    """The figures of an audit, and a sentence for each bar that this video misses, from which alone nothing follows.

    What this picture does not have (the motion of one that stands still, over its reference's) is not held against it.
    Raises VideoError for videos of other sizes, and when nothing is left to judge.
    """
    found = measured(gen_THWC, reference_THWC=reference_THWC).figures
    figures = {name: found[name] for name in KEPT if name in found}
    judging = [bar for bar in audited_bars(bars) if bar.figure in figures]
    if not judging:
        raise VideoError("none of the bars' figures can be measured on this picture")
    return figures, faults(figures, judging)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the last audits of a version say together."""

    figures: Figures
    """Means, of ratios those of the sums."""
    faults: tuple[str, ...]
    """A sentence for each mean that misses its bar."""
    is_clear: bool
    """Whether one of them misses it by more than chance explains."""


def standing(audits: Sequence[Figures], bars: Sequence[Bar]) -> Standing:
    """Each bar is held to the audits that have its figure."""
    means, missed, is_clear = {}, [], False
    for bar in audited_bars(bars):
        sides = _sides(bar.figure, [figures for figures in audits if bar.figure in figures])
        if not sides:
            continue
        means[bar.figure] = sum(part for part, _ in sides) / sum(whole for _, whole in sides)
        fault = bar.fault(means)
        if fault is not None:
            missed.append(f"{fault} (mean of {len(sides)} audits)")
            is_clear = is_clear or _is_clearly_missed(bar, sides)
    return Standing(figures=means, faults=tuple(missed), is_clear=is_clear)


def _sides(figure: str, audits: Sequence[Figures]) -> list[tuple[float, float]]:
    """Of a ratio the video's and its reference's, so that a picture that hardly moves counts little; else over 1."""
    part = figure.removesuffix("_ratio")
    if part != figure and all(part in each and each.get(f"ref_{part}") for each in audits):
        return [(each[part], each[f"ref_{part}"]) for each in audits]
    return [(each[figure], 1.0) for each in audits]


def _is_clearly_missed(bar: Bar, sides: Sequence[tuple[float, float]]) -> bool:
    """Whether Student's interval of the mean lies wholly beyond the bar; of a ratio, Fieller's."""
    from scipy.special import stdtrit  # 0.2 s to import

    if len(sides) < NUM_DECIDING:
        return False
    for limit, sign in ((bar.minimum, 1.0), (bar.maximum, -1.0)):
        if limit is not None:
            margins = [sign * (part - limit * whole) for part, whole in sides]
            error = statistics.stdev(margins) / math.sqrt(len(margins))
            if statistics.mean(margins) + float(stdtrit(len(margins) - 1, CONFIDENCE)) * error < 0:
                return True
    return False


def verdict(state: str, num_audits: int, standing: Standing, num_passed: int = NUM_PASSED) -> str | None:
    """What so many audits of a version's present state make of it: "activate", "roll_back" or None."""
    if standing.is_clear:
        return "roll_back"
    if state == CANARY and num_audits >= num_passed and not standing.faults:
        return "activate"
    return None


@dataclass(kw_only=True)
class Auditor:
    """Brings audits forward, and draws the conclusions."""

    stores: Stores
    objects: ObjectStore
    rules: AuditRules = AuditRules()

    def tick(self) -> None:
        """A step of every audit that can take one; references that nobody needs are removed."""
        for audit in self.stores.audits.open():
            try:
                self._advance(audit)
            except SakugaError as error:  # of the store or of storage: the next tick tries again
                logger.warning("audit=%s waits: %s", audit.id, error.message)
            except Exception:
                logger.exception("audit=%s", audit.id)
                self.stores.audits.gone(audit.id, "it could not be measured")
        self._remove_references()
        for entry in self.stores.profiles.versions():
            if entry.state != RETIRED:
                self._decide(entry)

    def _advance(self, audit: Audit) -> None:
        entry = self.stores.profiles.get(audit.profile_id)
        why, job = self._job(audit.tenant, audit.job_id, "the video")
        if entry.state == RETIRED:
            why = "the profile is retired"
        if job is not None and why is None and audit.reference_id is None:
            self._begin(audit, job)
            return
        if job is not None and why is None:
            why, reference = self._job(AUDIT_TENANT, str(audit.reference_id), "its reference")
            if reference is not None and why is None:
                self._judge(audit, entry, job, reference)
                return
        if why is not None:
            self.stores.audits.gone(audit.id, why)

    def _job(self, tenant: str, job_id: str, what: str) -> tuple[str | None, Job | None]:
        """A completed job; or why there will be none; neither, while it is under way."""
        try:
            job = self.stores.jobs.get(tenant, job_id)
        except NotFoundError:
            return f"{what} was deleted", None
        if job.state in ("failed", "cancelled"):
            return f"{what} {job.state if job.state == 'failed' else 'was cancelled'}", None
        return None, job if job.state == "completed" else None

    def _begin(self, audit: Audit, job: Job) -> None:
        """Render the reference, when nobody else wants the lanes."""
        backlog = self.stores.jobs.backlog().get(job.model)
        is_idle = backlog is None or (backlog.num_queued == 0 and backlog.num_running <= self.rules.max_running)
        if not self.rules.is_on or not is_idle:
            return
        once = Idempotency(owner=AUDIT_TENANT, key=audit.id, fingerprint=audit.id)
        reference = self.stores.jobs.submit(NewJob(**audit.reference), idempotency_key=once)  # ty: ignore[invalid-argument-type]
        self.stores.audits.began(audit.id, reference.id)
        logger.info("audit=%s job=%s reference=%s", audit.id, job.id, reference.id)

    def _judge(self, audit: Audit, entry: ProfileEntry, job: Job, reference: Job) -> None:
        bars = SpeedProfile.from_dict(entry.profile).bars
        try:
            with tempfile.TemporaryDirectory(prefix="sakuga-audit-") as folder:
                gen_THWC, reference_THWC = (
                    self._frames(each, Path(folder) / f"{name}.mp4")
                    for name, each in (("video", job), ("reference", reference))
                )
                figures, failing = judged(gen_THWC, reference_THWC, bars)
        except (NotFoundError, VideoError) as error:
            self.stores.audits.gone(audit.id, error.message)
            return
        self.stores.audits.ended(audit.id, not failing, figures, failing)
        logger.info("audit=%s profile=%s@%d passed=%s", audit.id, entry.name, entry.version, not failing)

    def _frames(self, job: Job, path: Path) -> Frames:
        assert job.artifact is not None, "a completed job has a video"
        self.objects.get(f"{job.artifact.prefix}/video.mp4", path)
        return read_video(path)

    def _remove_references(self) -> None:
        """With their files: of audits that have ended, or whose beginning was cut short and begun anew."""
        needed = self.stores.audits.references()
        for job in self.stores.jobs.page(AUDIT_TENANT, limit=100)[0]:
            if job.id not in needed:
                self.stores.jobs.delete(AUDIT_TENANT, job.id)

    def _decide(self, entry: ProfileEntry) -> None:
        """Also of audits that ended before a crash: what they lead to follows from the table alone."""
        limit = max(NUM_JUDGED, self.rules.num_passed)
        ended = self.stores.audits.verdicts(entry.id, entry.state_since, limit)
        if not ended:
            return
        found = standing([audit.figures for audit in ended], SpeedProfile.from_dict(entry.profile).bars)
        why: Mapping[str, object] = {"audits": len(ended), "figures": dict(found.figures)}
        decided = verdict(entry.state, len(ended), found, self.rules.num_passed)
        if decided == "activate":
            self.stores.profiles.activate(entry.id, why)
            logger.info("profile=%s@%d is active: its audits hold the bars", entry.name, entry.version)
        if decided == "roll_back":
            self.stores.profiles.retire(entry.id, ROLLED_BACK, {**why, "faults": list(found.faults)})
            logger.warning("profile=%s@%d is rolled back: %s", entry.name, entry.version, "; ".join(found.faults))
