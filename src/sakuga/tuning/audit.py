"""Audits of promoted profiles: renders of users, rendered once more the reference way and held to the gate's bars.

The gate compares frames, an audit has the mp4s of both sides, and the codec costs likeness: its share, measured, is
taken off the bars (`in_mp4`). All that is known of an audit stands in the job store, so whoever goes on after a crash
does the same steps; a reference is submitted under the audit's id as its idempotency key.

Run: pytest tests/unit/test_tuning_audit.py
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sakuga.errors import NotFoundError, SakugaError, VideoError
from sakuga.jobstore import AUDIT_TENANT, Audit, Idempotency, Job, NewJob, ProfileEntry, Stores
from sakuga.jobstore.profiles import CANARY, RETIRED, ROLLED_BACK
from sakuga.media import read_video
from sakuga.quality.figures import figures_of
from sakuga.quality.frames import Frames
from sakuga.storage.objects import ObjectStore
from sakuga.tuning.figures import Bar, faults
from sakuga.tuning.profiles import SpeedProfile

logger = logging.getLogger(__name__)

AUDITED = ("ref_psnr_db", "ref_ssim", "flicker_ratio", "motion_ratio", "flicker", "motion", "warp_error")
"""Figures whose bars an audit can judge; seconds and likeness to a target are the gate's alone."""
CODEC_PSNR_DB, CODEC_SSIM = 38.5, 0.965
"""What the codec leaves: an mp4 has 38.8 dB to its own frames, and of the SSIM of two videos their mp4s keep 0.968, the
worst of eight pairs by Wan-mini at 128x128 and 17 frames. Large pictures lose less; audits of them are a bit kinder."""
TIME_TOLERANCE = 0.05
"""Of a bar on what time does: in the same pairs ratios moved by 2.4 %, motion by 3.2 %; flicker only falls, by 10 %."""
NUM_PASSED = 3
"""In a row, and a version in canary becomes active."""
NUM_JUDGED, NUM_FAILED = 5, 2
"""Of its last so many audits so many have failed, and a version is rolled back; one in canary with as many in all."""
NUM_OF_CANARY = 100
"""Audits of a version in canary that are looked at."""


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
    """The figures of an audit, and a sentence for each bar that does not hold.

    What this picture does not have (the motion of one that stands still, over its reference's) is not held against it.
    Raises VideoError for videos of other sizes, and when nothing is left to judge.
    """
    measured = figures_of(gen_THWC, reference_THWC=reference_THWC)
    figures = {name: value for name, value in measured.items() if name in AUDITED}
    judging = [bar for bar in audited_bars(bars) if bar.figure in figures]
    if not judging:
        raise VideoError("none of the bars' figures can be measured on this picture")
    return figures, faults(figures, judging)


def verdict(state: str, ended: Sequence[Audit], num_passed: int = NUM_PASSED) -> str | None:
    """What the audits of a version's present state, the newest first, make of it: "activate", "roll_back" or None."""
    looked_at = ended if state == CANARY else ended[:NUM_JUDGED]
    if sum(audit.state == "failed" for audit in looked_at) >= NUM_FAILED:
        return "roll_back"
    newest = [audit.state for audit in ended[:num_passed]]
    if state == CANARY and newest == ["passed"] * num_passed:
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
        ended = self.stores.audits.verdicts(entry.id, entry.state_since, NUM_OF_CANARY)
        decided = verdict(entry.state, ended, self.rules.num_passed)
        if decided == "activate":
            self.stores.profiles.activate(entry.id, {"audits_passed": self.rules.num_passed})
            logger.info("profile=%s@%d is active: its audits have passed", entry.name, entry.version)
        if decided == "roll_back":
            failed = next(audit for audit in ended if audit.state == "failed")
            why: Mapping[str, object] = {"faults": list(failed.faults), "figures": dict(failed.figures)}
            self.stores.profiles.retire(entry.id, ROLLED_BACK, why)
            logger.warning("profile=%s@%d is rolled back: %s", entry.name, entry.version, "; ".join(failed.faults))
