"""Audits from a pending row to a rollback: real mp4s, a real store, and whatever can come in between."""

import dataclasses
import functools
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest

from profile_cases import speed_profile
from sakuga.errors import StorageError, VideoError
from sakuga.jobstore import AUDIT_TENANT, Artifact, Lane, NewAudit, NewJob, open_stores
from sakuga.media import read_video, write_mp4
from sakuga.quality.figures import Measured, figures_of, measured
from sakuga.storage.objects import FolderObjects
from sakuga.tuning.audit import (
    Auditor,
    AuditRules,
    audited_bars,
    in_mp4,
    judged,
    reference_job,
)
from sakuga.tuning.figures import Bar, parse_bars

JOB = NewJob(tenant="app", render_key="", model="wan-mini", recipe={"x": 1}, request={}, num_steps=1, work_s=1.0)
LANE = Lane(name="lane", models=("wan-mini",))


def picture(shift: int, size: int = 32, num_frames: int = 5) -> np.ndarray:
    """A textured square that moves; `shift` makes it another video."""
    ys, xs = np.mgrid[:size, :size]
    frames = [128 + 60 * np.sin((xs + t + shift) / 4) + 40 * np.cos(ys / 5) for t in range(num_frames)]
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1).clip(0, 255).astype(np.uint8)


@functools.cache
def mp4(shift: int, num_frames: int = 5) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(path, picture(shift, num_frames=num_frames), 15)
        return path.read_bytes()


class Watched:
    """A farm without lanes: this test publishes what it wants to have been rendered."""

    def __init__(self, folder) -> None:
        self.folder, self.number = folder, 0
        self.stores = open_stores(f"sqlite:///{folder / 'jobs.sqlite'}")
        self.objects = FolderObjects(folder / "objects")
        self.auditor = Auditor(stores=self.stores, objects=self.objects)

    def promoted(self, **changes: object):
        profile = speed_profile(**changes)
        return self.stores.profiles.promote("team", profile.as_dict(), profile.content_sha256)

    def submitted(self, profile_id: str):
        self.number += 1
        reference = reference_job(dataclasses.replace(JOB, render_key=f"r{self.number}"))
        audit = NewAudit(profile_id=profile_id, reference=dataclasses.asdict(reference))
        return self.stores.jobs.submit(dataclasses.replace(JOB, render_key=f"j{self.number}", audit=audit))

    def rendered(self, shift: int = 0, num_frames: int = 5) -> None:
        """What waits first is completed, with this picture."""
        claim = self.stores.renders.claim(LANE)
        assert claim is not None, "nothing waits"
        path = self.folder / "video.mp4"
        path.write_bytes(mp4(shift, num_frames))
        stored = self.objects.put(f"{claim.prefix}/video/video.mp4", path)
        artifact = Artifact(prefix=f"{claim.prefix}/video", sha256=stored.sha256, num_bytes=stored.num_bytes)
        assert self.stores.renders.publish(claim, artifact)

    def audited(self, profile_id: str, shift: int) -> None:
        """A video, its reference, and the verdict."""
        self.submitted(profile_id)
        self.rendered(shift)
        self.auditor.tick()
        self.rendered()
        self.auditor.tick()

    def of_audits(self) -> list:
        return self.stores.jobs.page(AUDIT_TENANT)[0]

    def state(self, profile_id: str) -> tuple[str, str | None]:
        entry = self.stores.profiles.get(profile_id)
        return entry.state, entry.reason

    def ended(self) -> list[tuple]:
        """How audits ended, by the table."""
        with self.stores.jobs.engine.connect() as connection:
            return connection.exec_driver_sql("SELECT state, reference, faults FROM audits ORDER BY created_at").all()


DECODED: dict[bytes, np.ndarray] = {}
MEASURED: dict[tuple[bytes, bytes], Measured] = {}


def read_once(path: Path) -> np.ndarray:
    data = path.read_bytes()
    if data not in DECODED:
        DECODED[data] = read_video(path)
    return DECODED[data]


def measured_once(gen_THWC: np.ndarray, *, reference_THWC: np.ndarray) -> Measured:
    key = (gen_THWC.tobytes(), reference_THWC.tobytes())
    if key not in MEASURED:
        MEASURED[key] = measured(gen_THWC, reference_THWC=reference_THWC)
    return MEASURED[key]


@pytest.fixture
def farm(tmp_path, monkeypatch):
    """The same videos are decoded and measured once, for all tests."""
    monkeypatch.setattr("sakuga.tuning.audit.read_video", read_once)
    monkeypatch.setattr("sakuga.tuning.audit.measured", measured_once)
    return Watched(tmp_path)


def test_a_canary_whose_audits_pass_becomes_active(farm):
    entry = farm.promoted()
    for number in range(3):
        assert farm.state(entry.id) == ("canary", None), number
        farm.audited(entry.id, 0)
    assert farm.state(entry.id) == ("active", None)
    assert farm.of_audits() == [] and farm.stores.audits.tally()[entry.id].passed == 3
    audited = [event for event in farm.stores.profiles.events("fast") if event.type == "audited"]
    assert len(audited) == 3 and audited[0].data["figures"]["ref_ssim"] == pytest.approx(1.0)
    assert farm.stores.jobs.garbage(), "the files of references go"


def test_a_canary_that_misses_its_bar_each_time_is_rolled_back_after_three_audits(farm, caplog):
    entry = farm.promoted()
    with caplog.at_level(logging.WARNING, "sakuga.tuning.audit"):
        for _ in range(3):
            assert farm.state(entry.id) == ("canary", None)
            farm.audited(entry.id, 8)
    assert farm.state(entry.id) == ("retired", "rolled_back")
    (event,) = [event for event in farm.stores.profiles.events("fast") if event.type == "rolled_back"]
    (fault,) = event.data["faults"]
    assert "at least 0.4825 is asked for (mean of 3 audits)" in fault and event.data["figures"]["ref_ssim"] < 0.48
    assert event.data["audits"] == 3 and f"profile=fast@1 is rolled back: {fault}" in caplog.text
    each = [event.data for event in farm.stores.profiles.events("fast") if event.type == "audited"]
    assert [data["passed"] for data in each] == [False] * 3 and all(data["figures"]["ref_ssim"] < 0.48 for data in each)


def test_a_video_that_misses_the_bar_neither_ends_a_canary_nor_keeps_it_back(farm):
    entry = farm.promoted()
    for shift in (8, 0, 0):
        farm.audited(entry.id, shift)
    assert farm.state(entry.id) == ("active", None), "the mean holds"
    assert farm.stores.audits.tally()[entry.id].failed == 1


def test_an_active_profile_that_drifts_is_rolled_back_to_the_one_before(farm):
    first = farm.promoted()
    farm.stores.profiles.activate(first.id)
    second = farm.promoted(fields={"num_inference_steps": 2})
    farm.stores.profiles.activate(second.id)
    for shift in (8, 0, 0, 0):
        farm.audited(second.id, shift)
    assert farm.state(second.id) == ("active", None)
    for _ in range(9):
        farm.audited(second.id, 8)
    assert farm.state(second.id) == ("active", None), "one good audit is among the last ten"
    farm.audited(second.id, 8)
    assert farm.state(second.id) == ("retired", "rolled_back") and farm.state(first.id) == ("active", None)
    assert farm.stores.profiles.num_rollbacks() == {("wan-mini", "fast"): 1}


def test_who_activates_a_rolled_back_profile_gives_it_a_new_start(farm):
    entry = farm.promoted()
    for _ in range(3):
        farm.audited(entry.id, 8)
    assert farm.state(entry.id)[0] == "retired"
    farm.stores.profiles.activate(entry.id)
    farm.audited(entry.id, 8)
    assert farm.state(entry.id) == ("active", None), "one audit since"


def test_references_wait_until_nobody_else_wants_the_lanes(farm):
    entry = farm.promoted()
    farm.submitted(entry.id)
    farm.rendered()
    other = farm.stores.jobs.submit(dataclasses.replace(JOB, render_key="other"))
    farm.auditor.tick()
    assert farm.of_audits() == [], "one waits"
    claim = farm.stores.renders.claim(LANE)
    farm.auditor.tick()
    assert farm.of_audits() == [], "one runs"
    farm.auditor.rules = AuditRules(max_running=1)
    farm.auditor.tick()
    (reference,) = farm.of_audits()
    assert (reference.priority, reference.tenant) == ("batch", AUDIT_TENANT)
    farm.stores.renders.failed(claim, "E_NAN", "x")
    assert farm.stores.jobs.in_flight_s("app") <= 1.0 and other.tenant == "app"


def test_audits_that_are_switched_off_wait(farm):
    entry = farm.promoted()
    farm.submitted(entry.id)
    farm.rendered()
    farm.auditor.rules = AuditRules(is_on=False)
    farm.auditor.tick()
    assert farm.of_audits() == [] and len(farm.stores.audits.open()) == 1


def test_what_its_user_deletes_is_not_rendered_again(farm):
    entry = farm.promoted()
    job = farm.submitted(entry.id)
    farm.rendered()
    farm.auditor.tick()
    (reference,) = farm.of_audits()
    farm.stores.jobs.delete("app", job.id)
    farm.auditor.tick()
    assert farm.ended() == [("gone", "{}", "[]")]
    assert farm.of_audits() == [] and farm.stores.jobs.is_deleted(AUDIT_TENANT, reference.id)


@pytest.mark.parametrize("end", ["failed", "cancelled", "retired", "reference"])
def test_what_cannot_be_judged_any_more_is_gone(farm, end):
    entry = farm.promoted()
    job = farm.submitted(entry.id)
    if end in ("failed", "cancelled"):
        claim = farm.stores.renders.claim(LANE)
        if end == "cancelled":
            farm.stores.jobs.cancel("app", job.id)
            farm.stores.renders.released(claim)
        else:
            farm.stores.renders.failed(claim, "E_NAN", "x")
            farm.stores.renders.failed(farm.stores.renders.claim(LANE), "E_NAN", "x")
    else:
        farm.rendered()
        farm.auditor.tick()
        if end == "retired":
            farm.stores.profiles.retire(entry.id)
        else:
            for _ in range(2):
                farm.stores.renders.failed(farm.stores.renders.claim(LANE), "E_NAN", "x")
    farm.auditor.tick()
    told = {"failed": "the video failed", "cancelled": "the video was cancelled", "retired": "the profile is retired"}
    assert farm.ended() == [("gone", "{}", f'["{told.get(end, "its reference failed")}"]')]
    assert farm.of_audits() == [] and farm.state(entry.id)[0] == ("retired" if end == "retired" else "canary")


def test_a_crash_after_the_submission_makes_no_second_reference(farm, monkeypatch):
    entry = farm.promoted()
    farm.submitted(entry.id)
    farm.rendered()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(farm.stores.audits), "began", crash)
        with pytest.raises(KeyboardInterrupt):
            farm.auditor.tick()
    (reference,) = farm.of_audits()
    farm.auditor.rules = AuditRules(max_running=1)
    farm.rendered()
    Auditor(stores=farm.stores, objects=farm.objects).tick()
    assert [audit.reference_id for audit in farm.stores.audits.open()] == [reference.id]
    farm.auditor.tick()
    assert farm.stores.audits.tally()[entry.id].passed == 1 and farm.of_audits() == []


def test_a_crash_before_the_verdict_changes_nothing(farm, monkeypatch):
    entry = farm.promoted()
    farm.audited(entry.id, 8)
    farm.audited(entry.id, 8)
    with monkeypatch.context() as patch:
        patch.setattr(Auditor, "_decide", lambda *_: None)
        farm.audited(entry.id, 8)
    assert farm.state(entry.id) == ("canary", None)
    farm.auditor.tick()
    assert farm.state(entry.id) == ("retired", "rolled_back")


def test_while_storage_is_away_an_audit_waits(farm, monkeypatch):
    entry = farm.promoted()
    farm.submitted(entry.id)
    farm.rendered()
    farm.auditor.tick()
    farm.rendered()

    def away(*_):
        raise StorageError("storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(FolderObjects, "get", away)
        farm.auditor.tick()
    assert [audit.state for audit in farm.stores.audits.open()] == ["rendering"]
    farm.auditor.tick()
    assert farm.stores.audits.tally()[entry.id].passed == 1


def test_a_video_of_another_length_cannot_be_judged(farm):
    entry = farm.promoted()
    farm.submitted(entry.id)
    farm.rendered(num_frames=9)
    farm.auditor.tick()
    farm.rendered()
    farm.auditor.tick()
    ((state, _, faults),) = farm.ended()
    assert state == "gone" and "9" in faults


def test_a_canary_may_have_to_pass_more_or_fewer(farm):
    entry = farm.promoted()
    farm.auditor.rules = AuditRules(num_passed=1)
    farm.audited(entry.id, 0)
    assert farm.state(entry.id) == ("active", None)


def test_bars_that_an_audit_cannot_measure_are_the_gates_alone():
    bars = parse_bars({"seconds": {"max": 1}, "psnr_db": {"min": 30}, "ref_ssim": {"min": 0.9}})
    assert [bar.figure for bar in audited_bars(bars)] == ["ref_ssim"]


def test_what_the_codec_costs_is_not_held_against_a_profile(tmp_path):
    """Frames that just hold a bar hold it as mp4s too; those that miss it clearly do not."""
    reference = picture(0, 128, 9)
    gen = (reference * 0.95).astype(np.uint8)
    figures = figures_of(gen, reference_THWC=reference)
    mp4s = []
    for name, frames in (("gen", gen), ("reference", reference)):
        write_mp4(tmp_path / f"{name}.mp4", frames, 15)
        mp4s.append(read_video(tmp_path / f"{name}.mp4"))
    held = [Bar(figure="ref_psnr_db", minimum=figures["ref_psnr_db"])]
    missed = [Bar(figure="ref_psnr_db", minimum=figures["ref_psnr_db"] + 8)]
    assert judged(*mp4s, held)[1] == [] and len(judged(*mp4s, missed)[1]) == 1


@pytest.mark.parametrize("frames_db, mp4_db", [(34.08, 33.02), (41.21, 37.34), (23.0, 22.96), (42.66, 38.36)])
def test_the_tolerance_covers_what_was_measured(frames_db, mp4_db):
    bar = in_mp4(Bar(figure="ref_psnr_db", minimum=frames_db)).minimum
    assert bar is not None and mp4_db - 2.2 < bar < mp4_db


def test_what_a_picture_does_not_have_is_not_held_against_it():
    still = np.repeat(picture(0, num_frames=1), 5, axis=0)
    bars = parse_bars({"motion_ratio": {"min": 0.9}, "ref_ssim": {"min": 0.9}})
    figures, failing = judged(still, still, bars)
    assert "motion_ratio" not in figures and failing == []
    assert judged(still, picture(0), bars)[1], "but a video that froze is"
    with pytest.raises(VideoError, match="none of the bars' figures"):
        judged(still, still, bars[:1])


def test_bars_from_above_are_raised():
    assert in_mp4(Bar(figure="flicker_ratio", maximum=1.2)).maximum == pytest.approx(1.26)
    assert in_mp4(Bar(figure="motion_ratio", minimum=1.0)).minimum == pytest.approx(0.95)
