"""Lanes by seconds of work: what is needed, what is kept, what goes; and that the class travels by value."""

import http.server
import subprocess
import sys
import threading
import types

import pytest
from ray import cloudpickle

from sakuga.farm.autoscaling import STALE_S, BacklogPolicy

PAGE = """# HELP sakuga_queued_seconds x
sakuga_queued_seconds{model="m"} 240.5
sakuga_queued_seconds{model="m2"} 1.0
sakuga_running_seconds{model="m"} 20.0
sakuga_renders{model="m",state="queued"} 10.0
sakuga_renders{model="m",state="running"} 2.0
"""


def policy(**fields) -> BacklogPolicy:
    return BacklogPolicy(**({"min_lanes": 0, "max_lanes": 8} | fields))


def test_from_nothing_every_request_gets_a_lane_and_one_is_spare():
    assert policy().decide(0.0, 0.0, 0, 0, 0.0) == 0
    assert policy().decide(24.0, 0.0, 1, 0, 0.0) == 2
    assert policy().decide(72.0, 0.0, 3, 0, 0.0) == 4
    assert policy().decide(2400.0, 0.0, 100, 0, 0.0) == 8


def test_who_can_wait_for_a_running_lane_starts_none():
    lanes = policy(spare_lanes=0)
    assert lanes.needed(24.0, 8.0, 1, 1) == 1, "free in 8 s"
    assert lanes.needed(24.0, 20.0, 1, 1) == 2
    assert lanes.needed(240.0, 20.0, 10, 4) == 8
    assert lanes.needed(3000.0, 250.0, 10, 1) > lanes.needed(3000.0, 250.0, 10, 4) - 4, "long renders bear more"


def test_kept_lanes_go_one_by_one_from_the_top_and_never_a_busy_one():
    lanes = policy(keep_s=100.0, keep_share=0.5, spare_lanes=0)
    assert lanes.decide(96.0, 0.0, 4, 0, 0.0) == 4
    assert [lanes.decide(0.0, 0.0, 0, 0, now) for now in (10.0, 13.0, 26.0, 51.0, 101.0)] == [4, 3, 2, 1, 0]
    assert lanes.decide(0.0, 500.0, 3, 3, 200.0) >= 3
    assert lanes.decide(0.0, 0.0, 0, 3, 10_000.0) >= 3


def test_bounds_hold():
    assert policy(min_lanes=2).decide(0.0, 0.0, 0, 0, 1e9) == 2
    assert policy(max_lanes=3).decide(1e6, 0.0, 10_000, 0, 0.0) == 3


def test_a_burst_ends_at_nothing_with_fewer_lane_seconds_than_fixed_lanes():
    """Ten requests at once, then silence: simulated by hand, lanes ready after 30 s."""
    lanes = policy(max_lanes=16)
    kept = [lanes.decide(0.0, 0.0, 0, 0, now) for now in range(0, 3600, 10)]
    assert kept[-1] == 0
    lanes.decide(240.0, 0.0, 10, 0, 3600.0)
    kept = [lanes.decide(0.0, 0.0, 0, 0, 3600.0 + now) for now in range(10, 3600, 10)]
    assert kept[0] == 10 and kept[-1] == 0 and sorted(kept, reverse=True) == kept


@pytest.fixture
def page():
    answers = {"text": PAGE}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if answers["text"] else 500)
            self.end_headers()
            self.wfile.write(answers["text"].encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield answers, f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()


def test_it_reads_the_page_and_keeps_its_number_without_one(page, monkeypatch):
    answers, url = page
    lanes, context = policy(metrics_url=url, model="m"), types.SimpleNamespace(target_num_replicas=5)
    assert lanes(context) == (5, {}), "nothing is known yet"
    _until(lambda: lanes._seen is not None)
    assert lanes._seen == (240.5, 20.0, 10, 2)
    assert lanes(context)[0] == 8
    answers["text"] = ""
    seen_at = lanes._seen_at
    monkeypatch.setattr("time.monotonic", lambda: seen_at + STALE_S + 1)
    assert lanes(context) == (5, {}), "never down on missing numbers"


def test_a_model_that_the_page_does_not_have_changes_nothing(page):
    _, url = page
    lanes = policy(metrics_url=url, model="unknown")
    with pytest.raises(ValueError, match="no sakuga_queued_seconds"):
        lanes._value(PAGE, "queued_seconds")


def test_it_travels_by_value_to_a_process_without_sakuga(tmp_path):
    import sakuga.farm.autoscaling as module

    cloudpickle.register_pickle_by_value(module)
    try:
        blob = cloudpickle.dumps(BacklogPolicy)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    path = tmp_path / "policy"
    path.write_bytes(blob)
    code = (
        "import sys; sys.modules['sakuga'] = None; from ray import cloudpickle; "
        f"made = cloudpickle.loads(open({str(path)!r}, 'rb').read())(min_lanes=0, max_lanes=4); "
        "print(made.decide(24.0, 0.0, 1, 0, 0.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def _until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("not within 10 s")
