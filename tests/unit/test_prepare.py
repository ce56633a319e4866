"""Data preparation without Ray: index, report, contact sheet, and what happens to bad data."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sakuga.cli.main import run
from sakuga.errors import BusyError, DataError, DiskFullError, GeometryError, OutputError, WorkerDiedError
from sakuga.farm.lock import folder_lock
from sakuga.farm.prepare import REPORT_NAME, SHEET_NAME, PrepareRequest, prepare
from sakuga.media import write_mp4
from sakuga.synth.dataset import write_dataset
from sakuga.training.prepared import INDEX_NAME, LatentCache, PreparedSet

TINY = {"width": 32, "height": 32, "num_frames": 5}


@pytest.fixture(scope="module")
def dancers(tmp_path_factory):
    """Groups 8 and 9: one for training, one for tests, in both worlds."""
    folder = tmp_path_factory.mktemp("dancers")
    write_dataset(folder, num_groups=2, first_seed=8, **TINY)
    return folder


@pytest.fixture
def mixed(tmp_path):
    """Two videos and a picture that can be used, and one file of every kind that cannot."""
    home, rng = tmp_path / "mixed", np.random.default_rng(0)
    home.mkdir()
    frames = rng.integers(0, 255, (12, 32, 32, 3), np.uint8)
    for name, count, fps in (("a", 5, 15), ("b", 12, 24), ("short", 3, 15), ("one", 1, 15), ("cut", 12, 15)):
        write_mp4(home / f"{name}.mp4", frames[:count], fps)
        (home / f"{name}.txt").write_text(f"{name} dances")
    (home / "cut.mp4").write_bytes((home / "cut.mp4").read_bytes()[:-2000])
    Image.fromarray(frames[0]).save(home / "star.png")
    (home / "star.txt").write_text("a star")
    Image.fromarray(frames[0]).save(home / "empty.png")
    (home / "empty.txt").write_text("")
    return home


def report_of(folder) -> dict:
    return json.loads((folder / REPORT_NAME).read_text())


def test_one_world_of_the_dancers(dancers, tmp_path):
    seen = []
    request = PrepareRequest(data=dancers, out=tmp_path / "out", where={"world": "fairy"}, **TINY)
    summary = prepare(request, on_sample=lambda done, total: seen.append((done, total)))
    assert (summary.num_train, summary.num_test, summary.num_new, summary.num_rejected) == (1, 1, 2, 0)
    assert seen == [(1, 2), (2, 2)] and summary.task == "i2v"
    prepared = PreparedSet.read(tmp_path / "out")
    assert [(sample.name, sample.split, sample.seed, sample.fps) for sample in prepared.samples] == [
        ("train/000008_fairy/video.mp4", "train", 8, 15.0),
        ("test/000009_fairy/video.mp4", "test", 9, 15.0),
    ]
    assert prepared.cache == "cache" and report_of(tmp_path / "out")["num_left_out"] == 2
    cache = prepared.open_cache(tmp_path / "out", tmp_path / "local")
    for sample in prepared.samples:
        assert cache.get("videos", sample.video_key)["latents_CThw"].shape == (16, 2, 4, 4)
        assert cache.get("texts", sample.text_key)["context_LD"].shape[1] == 192
    assert cache.get("texts", prepared.empty_text_key)["context_LD"].shape == (1, 192)
    moved = tmp_path / "moved"
    (tmp_path / "out").rename(moved)
    assert prepare(PrepareRequest(data=dancers, out=moved, where={"world": "fairy"}, **TINY)).num_new == 0
    assert PreparedSet.read(moved) == prepared


def test_every_file_is_reported(mixed, tmp_path):
    summary = prepare(PrepareRequest(data=mixed, out=tmp_path / "out", cache=str(tmp_path / "shared"), **TINY))
    said = {file["name"]: file for file in report_of(tmp_path / "out")["files"]}
    assert {name for name, file in said.items() if file["status"] == "used"} == {"a.mp4", "b.mp4", "star.png"}
    for name, words in (
        ("short.mp4", "3 frames at 15 fps"), ("one.mp4", "one frame; give it as a picture"), ("cut.mp4", "damaged"),
        ("empty.png", "caption is empty"),
    ):  # fmt: skip
        assert words in said[name]["reason"], said[name]
    assert said["b.mp4"]["notes"][0] == "resampled from 24 to 15 fps"
    assert (summary.num_train + summary.num_test, summary.num_rejected) == (3, 4)
    prepared = PreparedSet.read(tmp_path / "out")
    assert prepared.cache == str(tmp_path / "shared") and len(prepared.of("test")) >= 1
    assert {sample.name: sample.num_frames for sample in prepared.samples} == {"a.mp4": 5, "b.mp4": 5, "star.png": 1}
    with Image.open(tmp_path / "out" / SHEET_NAME) as sheet:
        assert sheet.height > 3 * 128


def test_pictures_alone(tmp_path):
    rng = np.random.default_rng(1)
    for index in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(tmp_path / f"{index}.png")
    request = PrepareRequest(data=tmp_path, out=tmp_path / "out", prompt="flat colours", **TINY)
    prepare(request)
    prepared = PreparedSet.read(tmp_path / "out")
    assert [sample.prompt for sample in prepared.samples] == ["flat colours"] * 4
    assert prepared.of("train") and prepared.of("test")
    assert len({sample.text_key for sample in prepared.samples}) == 1


def test_no_usable_sample(mixed, tmp_path):
    for path in (*mixed.glob("[ab].*"), mixed / "star.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no usable sample in .*: 4 rejected, such as .*; report.json says it of each"):
        prepare(PrepareRequest(data=mixed, out=tmp_path / "out", **TINY))
    assert len(report_of(tmp_path / "out")["files"]) == 4
    assert not (tmp_path / "out" / INDEX_NAME).exists()


def test_refused_before_anything_is_read(mixed, tmp_path):
    with pytest.raises(GeometryError, match="multiple of 4 plus 1"):
        prepare(PrepareRequest(data=mixed, out=tmp_path / "out", num_frames=6))
    (tmp_path / "out").mkdir(exist_ok=True)
    with folder_lock(tmp_path / "out"), pytest.raises(BusyError):
        prepare(PrepareRequest(data=mixed, out=tmp_path / "out", **TINY))


def test_a_machine_that_fails_is_no_fault_of_a_file(mixed, tmp_path, monkeypatch):
    def full(*_):
        raise DiskFullError("no space is left")

    monkeypatch.setattr(LatentCache, "put", full)
    with pytest.raises(DiskFullError):
        prepare(PrepareRequest(data=mixed, out=tmp_path / "out", **TINY))
    assert not (tmp_path / "out" / INDEX_NAME).exists()


def test_a_file_that_kills_its_process_is_rejected(mixed, tmp_path, monkeypatch):
    def count(_, index):
        if index == "0":
            raise WorkerDiedError("died twice")

    monkeypatch.setattr("sakuga.farm.prepare.count_attempt", count)
    prepare(PrepareRequest(data=mixed, out=tmp_path / "out", **TINY))
    rejected = {file["name"]: file["reason"] for file in report_of(tmp_path / "out")["files"] if file["reason"]}
    assert "its process died" in rejected["a.mp4"]


def test_stopped_it_goes_on(mixed, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    request = PrepareRequest(data=mixed, out=tmp_path / "out", **TINY)
    with pytest.raises(KeyboardInterrupt, match="1 of 6 samples are done and stay in the cache"):
        prepare(request, on_sample=stop)
    assert prepare(request).num_new == 2


def test_a_job_needs_absolute_paths(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr("sakuga.settings.in_submitted_job", lambda: True)
    with pytest.raises(OutputError, match="--out is 'out'"):
        prepare(PrepareRequest(data=mixed, out=Path("out")))
    with pytest.raises(OutputError, match=r"--cache is 'latents', .* absolute path or s3"):
        prepare(PrepareRequest(data=mixed, out=tmp_path / "out", cache="latents"))


def test_command(dancers, tmp_path, capsys):
    size = ["--width", "32", "--height", "32", "--num-frames", "5"]
    arguments = ["prepare", str(dancers), "--out", str(tmp_path / "out"), *size, "--json"]
    assert run([*arguments, "--where", "world=fairy", "--task", "t2v"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "t2v"
    for wrong, words in ((["--where", "fairy"], "COLUMN=VALUE"), (["--where", "world=moon"], "4 left out by --where")):
        assert run([*arguments, *wrong]) == 2
        assert words in json.loads(capsys.readouterr().out)["error"]["message"]
