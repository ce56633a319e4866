"""The keeper: leases that are over, room for urgent work, storage that nobody needs; errors do not end it."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sakuga.errors import StorageError
from sakuga.jobstore import Artifact, Lane, NewJob, open_stores, stores_on
from sakuga.jobstore import keeper as keeper_module
from sakuga.jobstore.keeper import Keeper
from sakuga.jobstore.retention import RETRY_S
from sakuga.storage.objects import FolderObjects

JOB = NewJob(
    tenant="app", render_key="a" * 64, model="m", recipe={}, request={}, num_steps=10, work_s=10.0,
    inputs={"image": "app/uploads/1/image.png"},
)  # fmt: skip
LANE = Lane(name="lane", models=("m",))


@pytest.fixture
def objects(tmp_path):
    return FolderObjects(tmp_path / "objects")


def stored(objects, tmp_path: Path, *names: str) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    for name in names:
        objects.put(name, tmp_path / "file")


def everything(objects) -> list[str]:
    return [path.relative_to(objects.root).as_posix() for path in objects.root.rglob("*") if path.is_file()]


def test_a_tick_takes_back_and_makes_room(stores, clock):
    keeper = Keeper(stores, None)
    keeper.tick()
    job = stores.jobs.submit(replace(JOB, priority="batch"))
    claim = stores.renders.claim(LANE)
    stores.jobs.submit(replace(JOB, render_key="c" * 64, priority="interactive"))
    clock.now += 1
    keeper.tick()
    assert stores.renders.heartbeat(claim, 1).yield_lane
    clock.now += 100
    keeper.tick()
    assert stores.jobs.get("app", job.id).state == "queued"


def test_a_sweep_leaves_nothing_of_what_expired(engine, clock, objects, tmp_path):
    stores = stores_on(engine, clock=clock, retention_s=100)
    keeper = Keeper(stores, objects)
    job = stores.jobs.submit(JOB)
    claim = stores.renders.claim(LANE)
    video = f"{claim.prefix}/video"
    stored(
        objects, tmp_path, "app/uploads/1/image.png", f"{video}/video.mp4", f"{claim.prefix}/preview.webp", "app/other"
    )
    stores.renders.publish(claim, Artifact(prefix=video, sha256="b" * 64, num_bytes=5))
    keeper.sweep()
    assert len(everything(objects)) == 4
    clock.now += 101
    keeper.sweep()
    assert everything(objects) == ["app/other"]
    assert stores.jobs.counts()["deleted"] == 1
    keeper.sweep()
    assert job.render_id not in str(stores.jobs.garbage())


def test_what_storage_does_not_let_go_is_tried_again(stores, clock, objects, tmp_path, monkeypatch):
    keeper = Keeper(stores, objects)
    stored(objects, tmp_path, "a/1", "b/1")
    stores.jobs.discard(["a", "b"])
    delete = FolderObjects.delete

    def failing(self, prefix):
        if prefix == "a":
            raise StorageError("a cannot be reached")
        return delete(self, prefix)

    with monkeypatch.context() as patched:
        patched.setattr(FolderObjects, "delete", failing)
        keeper.sweep()
    assert everything(objects) == ["a/1"]
    clock.now += RETRY_S
    keeper.sweep()
    assert everything(objects) == []


def test_without_objects_names_are_kept_for_who_has_them(stores):
    stores.jobs.discard(["a"])
    Keeper(stores, None).sweep()
    assert stores.jobs.garbage() == ["a"]


def test_an_error_ends_neither_the_keeper_nor_its_other_duties(stores, monkeypatch, caplog):
    turns, asked, over = [], [], threading.Event()

    def reap():
        turns.append(len(turns))
        if len(turns) == 3:
            over.set()
        raise OSError("the database is away")

    monkeypatch.setattr(stores.renders, "reap", reap)
    monkeypatch.setattr(stores.renders, "preempt", lambda: asked.append(1))
    monkeypatch.setattr(keeper_module, "TROUBLE_S", 0.0)
    Keeper(stores, None).run(over, tick_s=0.001, sweep_s=0.001)
    assert len(turns) == len(asked) == 3
    assert "the keeper could not do its reap" in caplog.text


def test_lanes_keep_what_they_have_when_the_store_was_away(stores, clock, monkeypatch):
    stores.jobs.submit(JOB)
    claim = stores.renders.claim(LANE)
    monkeypatch.setattr(keeper_module, "TROUBLE_S", 0.0)

    class Over(threading.Event):
        turns = 0

        def wait(self, timeout=None):
            self.turns += 1
            if self.turns == 2:
                clock.now += 1000  # the store is away
                monkeypatch.setattr(stores.renders, "preempt", lambda: 1 / 0)
                monkeypatch.setattr(stores.renders, "reap", lambda: 1 / 0)
            if self.turns == 3:
                monkeypatch.undo()
            return self.turns == 6

    clock.now += 1000  # before the keeper started, too
    Keeper(stores, None).run(Over())
    assert stores.renders.heartbeat(claim, 1).cancel is False
    clock.now += 1000
    assert stores.renders.reap() == 1


def test_a_deleted_prompt_is_in_no_file_after_a_sweep(tmp_path):
    stores = open_stores(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    secret = "a fairy in the rain"
    prompt = secret * 1000  # on pages of its own

    def submit(number: int):
        return stores.jobs.submit(replace(JOB, render_key=f"{number:064d}", recipe={}, request={"prompt": prompt}))

    jobs = [submit(number) for number in range(3)]

    def is_in_a_file() -> bool:
        return any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())

    assert is_in_a_file()
    for job in jobs:
        stores.jobs.delete("app", job.id)
    assert Keeper(stores, None).sweep()
    assert not is_in_a_file()
    assert (tmp_path / "jobs.sqlite-wal").stat().st_size == 0
    stores.jobs.engine.dispose()
