"""The bulk run on a real Ray cluster: what one bad row, one dead worker, one signal or a second run may cost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sakuga.errors import BusyError, ClusterError, ManifestError, OutputError
from sakuga.farm.progress import FINAL_STAGES, Board, ProgressTail

pytestmark = pytest.mark.ray


@pytest.fixture
def run(ray_cluster, monkeypatch, tmp_path):
    """`run(manifest)` renders into `run.out` with the fake renderer."""
    from sakuga.farm.bulk import run_bulk

    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def call(path, **options):
        return run_bulk(path, call.out, renderer="fake_renderer:FakeRenderer", **{"num_workers": 2, **options})

    call.out = tmp_path / "out"
    return call


def results(out):
    return {result["row"]: result for result in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def rendered(out):
    return sorted((out / "renders.log").read_text().split())


def test_bad_rows_are_reported_and_the_others_go_on(run, manifest):
    path = manifest("dance", {"prompt": "dance", "widht": 64}, "raise", "no recipe", "no disk", "dance")
    summary = run(path)
    found = results(run.out)
    codes = {row: result["error"] and result["error"]["code"] for row, result in found.items()}
    assert codes == {
        "row-0001": None,
        "row-0002": "E_RECIPE",
        "row-0003": "E_INTERNAL",
        "row-0004": "E_GEOMETRY",
        "row-0005": "E_DISK_FULL",
        "row-0006": None,
    }
    assert list(found) == sorted(found)  # manifest order, whatever order they ended in
    assert "this row is cursed" in found["row-0003"]["error"]["message"]
    assert (summary.done, summary.failed, summary.skipped, summary.not_run) == (2, 4, 0, 0)
    assert summary.exit_code == 1
    assert summary.seconds == {"encode": 0.5, "denoise": 2.0, "decode": 1.0}
    assert json.loads((run.out / "summary.json").read_text()) == summary.as_dict()
    assert summary.errors == {"E_RECIPE": 1, "E_INTERNAL": 1, "E_GEOMETRY": 1, "E_DISK_FULL": 1}

    board = Board()
    for event in ProgressTail(run.out / "progress.jsonl").read_new():
        board.apply(event)
    assert board.num_ended == 6
    assert board.num_failed == 4
    assert board.fraction == 1.0
    assert {row.stage for row in board.rows.values()} <= FINAL_STAGES
    assert not (run.out / ".attempts").exists()


def test_a_second_run_renders_what_is_missing_or_failed(run, manifest):
    path = manifest("dance", {"prompt": "dance", "id": "b"}, {"prompt": "dance", "id": "c"}, "raise")
    run(path, num_workers=1)
    (run.out / "b.mp4").unlink()
    (run.out / "c.json").write_text('{"key": "half-writ')
    (run.out / "renders.log").unlink()
    summary = run(path, num_workers=1)
    assert rendered(run.out) == ["b", "c", "row-0004"]
    assert (summary.done, summary.skipped, summary.failed) == (2, 1, 1)
    assert results(run.out)["row-0001"]["status"] == "skipped"
    assert len(results(run.out)) == 4

    (run.out / "renders.log").unlink()
    assert run(path, defaults={"num_inference_steps": 7}).done == 3  # other recipes, other keys
    assert len(rendered(run.out)) == 4


def test_a_killed_worker_costs_its_row_one_retry(run, manifest):
    summary = run(manifest("dance", "die once", "die always", "dance"))
    found = results(run.out)
    assert found["row-0002"]["status"] == "done"
    assert found["row-0002"]["attempts"] == 2
    assert found["row-0003"]["error"]["code"] == "E_WORKER_DIED"
    assert (summary.done, summary.failed) == (3, 1)
    assert rendered(run.out).count("row-0002") == 2
    assert rendered(run.out).count("row-0003") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(run, manifest, number):
    # The second row stops the run; the others wait, for on a busy machine they would end before the signal is seen.
    path = manifest("dance", f"signal {os.getpid()} {int(number)}", *["hold"] * 4)
    with pytest.raises(KeyboardInterrupt, match="run the same command again") as stop:
        run(path, num_workers=1)
    assert str(run.out) in str(stop.value)
    summary = json.loads((run.out / "summary.json").read_text())
    assert summary["done"] >= 1  # the first row, which was done before
    assert summary["not_run"] == 6 - len(results(run.out)) >= 1
    before = len(rendered(run.out))
    (run.out / "release").touch()
    assert run(path).not_run == 0
    # Whatever the stop caught in the middle runs again, and nothing that was done.
    assert len(rendered(run.out)) - before <= 6 - summary["done"]
    assert len(results(run.out)) == 6


def test_a_failure_of_ray_leaves_what_is_done_and_says_how_to_go_on(run, manifest):
    path = manifest("dance", "wreck", {"prompt": "dance", "widht": 64})
    with pytest.raises(ClusterError, match=r"2 of 3 videos are settled in .*run the same command again"):
        run(path, num_workers=1)
    summary = json.loads((run.out / "summary.json").read_text())
    assert (summary["done"], summary["failed"], summary["not_run"]) == (1, 1, 1)
    assert {row: result["status"] for row, result in results(run.out).items()} == {
        "row-0001": "done",
        "row-0003": "failed",
    }


def test_gpus_that_are_not_there(run, manifest, monkeypatch, caplog):
    """Ray would wait for them; a local cluster cannot get any, another one may."""
    import ray

    from sakuga.farm import bulk

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    with pytest.raises(ClusterError, match="2 workers want a GPU each and Ray sees 0; use --device cpu"):
        run(manifest("dance", "dance"), device="cuda")
    monkeypatch.setattr(bulk, "outcomes", lambda *_, **__: (result for result in ()))
    assert run(manifest("dance"), device="cuda", address="auto").not_run == 1
    assert "1 worker wants a GPU and Ray sees 0" in caplog.text


def test_two_runs_into_one_folder(run, manifest):
    path = manifest("dance")
    code = (
        "import sys; from pathlib import Path; from sakuga.farm.lock import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    run.out.mkdir()
    command = [sys.executable, "-c", code, str(run.out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"pid {holder.pid}"):
            run(path)
        assert not (run.out / "progress.jsonl").exists()  # the holder's files are not touched
        holder.kill()
    assert run(path).done == 1


def test_what_stops_a_run_before_it_begins(run, manifest, tmp_path):
    with pytest.raises(ManifestError, match="does not exist"):
        run(tmp_path / "nowhere.jsonl")
    run.out = tmp_path / "file"
    run.out.write_text("mine")
    with pytest.raises(OutputError, match="is, or lies under, a file"):
        run(manifest("dance"))
    assert run.out.read_text() == "mine"
