"""A lane and its storage: what fails there costs a job time and nothing else, and nothing stays behind."""

from dataclasses import replace

import pytest

from lane_farm import LaneFarm, after_the_claim, submit, undisturbed
from sakuga.engine import LocalEngine
from sakuga.engine.driven import EngineSession
from sakuga.errors import DiskFullError, StorageError
from sakuga.farm.lane import PARKED_S, Outcome
from sakuga.jobstore.ending import STALE_S
from sakuga.jobstore.leases import MAX_LOST
from sakuga.recipe import ImageRef

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine():
    return LocalEngine.load("wan-mini")


@pytest.fixture
def farm(tmp_path, engine):
    farm = LaneFarm(tmp_path, engine)
    yield farm
    farm.store.engine.dispose()


@pytest.fixture(scope="module")
def expected(tmp_path_factory, engine):
    return undisturbed(tmp_path_factory.mktemp("expected"), engine)


def test_a_snapshot_that_is_damaged_means_from_the_beginning(farm, expected):
    job = farm.submitted()
    assert farm.lane(1, should_close=after_the_claim()).run_one() is Outcome.YIELDED
    (snapshot,) = farm.objects.names("app")
    path = farm.objects.root / snapshot
    path.write_bytes(path.read_bytes()[:1000])
    assert farm.lane(2).run_one() is Outcome.COMPLETED
    assert farm.store.get("app", job.id).artifact.sha256 == expected


class Faulty:
    """Storage that fails as often as told, for names that contain a word."""

    def __init__(self, objects, word: str, times: int) -> None:
        self._objects, self.word, self.times = objects, word, times

    def __getattr__(self, name):
        return getattr(self._objects, name)

    def put(self, name, path):
        if self.word in name and self.times:
            self.times -= 1
            raise DiskFullError(f"no space for {name}")
        return self._objects.put(name, path)


def count_begins(monkeypatch):
    begin, begun = EngineSession.begin, []
    monkeypatch.setattr(EngineSession, "begin", lambda *args: begun.append(1) or begin(*args))
    return begun


def test_a_finished_video_waits_for_storage_and_is_not_rendered_again(farm, monkeypatch, expected):
    job, begun = farm.submitted(), count_begins(monkeypatch)
    farm.objects = Faulty(farm.objects, "video.mp4", 1)
    assert farm.lane(1).run_one() is Outcome.COMPLETED
    assert (farm.store.get("app", job.id).artifact.sha256, len(begun)) == (expected, 1)


def test_without_storage_a_job_waits_and_pays_nothing(farm, expected):
    job = farm.submitted()
    farm.objects = Faulty(farm.objects, "video.mp4", MAX_LOST + 1)
    for _ in range(MAX_LOST + 1):
        assert farm.lane(1, storage_patience_s=0).run_one() is Outcome.PARKED
        assert farm.lane(1).run_one() is None, "for a while"
        farm.clock.offset += 2 * PARKED_S
    assert farm.lane(1).run_one() is Outcome.COMPLETED
    assert farm.store.get("app", job.id).artifact.sha256 == expected


def test_a_snapshot_that_cannot_be_stored_stops_nothing(farm, expected):
    job = farm.submitted()
    farm.objects = Faulty(farm.objects, "snapshot", 100)
    assert farm.lane(1).run_one() is Outcome.COMPLETED
    assert farm.store.get("app", job.id).artifact.sha256 == expected


class Doubtful(Faulty):
    """Storage that does what it is asked and then says that it did not."""

    def put(self, name, path):
        stored = self._objects.put(name, path)
        if self.word in name and self.times:
            self.times -= 1
            raise StorageError(f"no answer about {name}")
        return stored


def test_snapshots_that_were_stored_against_all_appearance_go_too(farm, expected):
    job = farm.submitted()
    farm.objects = Doubtful(farm.objects, "snapshot", 100)
    assert farm.lane(1).run_one() is Outcome.COMPLETED
    assert any("snapshot" in name for name in farm.objects.names("app"))
    farm.clock.offset += 2 * STALE_S
    for name in farm.store.garbage():
        farm.objects.delete(name)
    left = farm.objects.names("app")
    assert left == farm.objects.names(farm.store.get("app", job.id).artifact.prefix), "the video and nothing else"


def test_a_snapshot_that_cannot_be_removed_stops_nothing(farm, monkeypatch, expected):
    job, begun = farm.submitted(), count_begins(monkeypatch)

    def refused(prefix):
        raise StorageError(f"{prefix} cannot be reached")

    monkeypatch.setattr(farm.objects, "delete", refused)
    assert farm.lane(1).run_one() is Outcome.COMPLETED
    assert (farm.store.get("app", job.id).artifact.sha256, len(begun)) == (expected, 1)


def test_inputs_come_from_storage_and_must_be_those_of_the_recipe(farm, engine, tmp_path):
    from PIL import Image

    from sakuga.media import image_sha256

    path = tmp_path / "photo.png"
    picture = Image.new("RGB", (32, 32), (200, 120, 40))
    picture.save(path)
    farm.objects.put("app/uploads/1/input_image.png", path)
    recipe = replace(farm.recipe, images=(ImageRef(role="input_image", sha256=image_sha256(picture)),))
    wrong = replace(farm.recipe, images=(ImageRef(role="input_image", sha256="0" * 64),))
    inputs = {"input_image": "app/uploads/1/input_image.png"}
    job, other = (submit(farm.store, each, inputs=inputs) for each in (recipe, wrong))
    lane = farm.lane(1)
    while lane.run_one() is not None:
        pass
    assert farm.store.get("app", job.id).state == "completed"
    assert farm.store.get("app", other.id).error_code == "E_IMAGE"
