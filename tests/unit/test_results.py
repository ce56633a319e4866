"""What counts as finished, and what a summary says."""

import json

import pytest

from sakuga.farm.results import RowResult, append_result, finished_receipt, summarise, write_results

FILES = ("a.mp4", "a.webp", "a.sprites.webp")


@pytest.fixture
def finished(tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.json").write_text(json.dumps({"key": "k1", "seconds": {"encode": 1.0}}))
    return tmp_path


def test_a_whole_render_of_the_same_key_is_finished(finished):
    receipt = finished_receipt(finished, "a", "k1")
    assert receipt is not None
    assert receipt["seconds"] == {"encode": 1.0}
    assert finished_receipt(finished, "a", "k2") is None
    assert finished_receipt(finished, "b", "k1") is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_missing_or_empty_file_is_not_finished(finished, name, damage):
    if damage == "missing":
        (finished / name).unlink()
    else:
        (finished / name).write_bytes(b"")
    assert finished_receipt(finished, "a", "k1") is None


def test_a_render_of_one_frame_is_finished_with_its_picture(finished):
    receipt = {"key": "k1", "seconds": {}, "files": {"video": "a.mp4", "picture": "a.png"}}
    (finished / "a.json").write_text(json.dumps(receipt))
    assert finished_receipt(finished, "a", "k1") is None
    (finished / "a.png").write_bytes(b"x")
    assert finished_receipt(finished, "a", "k1") == receipt


@pytest.mark.parametrize("text", ['{"key": "k1", "seco', "", "[]", "null", '{"key": "k1"}', "\xff"])
def test_a_damaged_receipt_is_not_finished(finished, text):
    (finished / "a.json").write_bytes(text.encode("latin-1"))
    assert finished_receipt(finished, "a", "k1") is None


def result(row, status, **more):
    return RowResult(row=row, line=int(row), name=row, status=status, **more)


def test_summary_counts_only_what_this_run_rendered(tmp_path):
    full = {"code": "E_DISK_FULL", "message": "no space"}
    results = [
        result("1", "done", seconds={"encode": 1.0, "denoise": 2.0}),
        result("2", "done", seconds={"encode": 0.5, "denoise": 4.0}),
        result("3", "skipped", seconds={"encode": 100.0}),
        result("4", "failed", error=full),
        result("5", "failed", error=full),
    ]
    summary = summarise(results, num_rows=6, wall_s=30.0, num_workers=2, out=tmp_path)
    assert summary.as_dict() == {
        "out": str(tmp_path),
        "videos": 6,
        "done": 2,
        "skipped": 1,
        "failed": 2,
        "not_run": 1,
        "wall_s": 30.0,
        "videos_per_min": 4.0,
        "seconds": {"encode": 1.5, "denoise": 6.0},
        "errors": {"E_DISK_FULL": 2},
        "num_workers": 2,
    }
    assert summary.exit_code == 1
    assert summarise(results[:3], num_rows=3, wall_s=0.0, num_workers=1, out=tmp_path).exit_code == 0


def test_results_are_appended_and_at_the_end_in_order(tmp_path):
    write_results(tmp_path, [result("3", "skipped")])
    append_result(tmp_path, result("2", "done"))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == ["3", "2"]
    write_results(tmp_path, [result("3", "skipped"), result("2", "done"), result("1", "failed")])
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == ["1", "2", "3"]
