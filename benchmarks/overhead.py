"""What the farm adds to a render, and how fast its API answers while it renders behind a long queue.

    python benchmarks/overhead.py --json

`overhead_share`: (completed_at - created_at - the receipt's engine seconds) / engine seconds, median of sequential
Wan-mini jobs on an idle farm; the API's times are whole seconds, so those of the events are taken.
`interactive_start_over_a_step_s`: the longest time until an interactive job had the only lane, which a batch render
held, less one step of that. `api_p95_s`: of retrieve, list and create in turn while a lane renders and `--queued` jobs
wait.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

from common import machine_facts, print_result
from openai import OpenAI

from sakuga.cli.client import Farm
from sakuga.farm.local_farm import TENANT, LocalFarm, farm_args
from sakuga.jobstore import NewJob

CONFIG = {"pools": [{"model": "wan-mini"}], "api": {"max_queued_jobs": 20_000}}


def one_job(farm: LocalFarm, client: OpenAI, seed: int) -> dict[str, float]:
    """Submit, wait, and take the times from the job's own events and receipt."""
    video = client.videos.create(prompt="A girl dances a slow waltz.", extra_body={"seed": str(seed)})
    events = list(Farm(farm.url, farm.api_key).history(video.id))
    at = {event.type: float(str(event.data["at"])) for event in events}
    assert "completed" in at, events[-1]
    receipt = json.loads(client.videos.download_content(video.id, variant="receipt").read())  # ty: ignore
    return {"wall_s": at["completed"] - at["queued"], "engine_s": receipt["seconds"]["total"]}


def urgent_start(farm: LocalFarm, client: OpenAI, seed: int) -> dict[str, float]:
    """Seconds until an interactive job has the only lane, which a batch render holds; and of a step of that."""
    batch = client.videos.create(prompt="A", extra_body={"seed": str(seed), "priority": "batch"})
    while client.videos.retrieve(batch.id).model_dump()["step"] < 3:
        time.sleep(0.05)
    urgent = client.videos.create(
        prompt="B", extra_body={"seed": str(seed), "priority": "interactive", "num_inference_steps": "1"}
    )
    at = {event.type: float(str(event.data["at"])) for event in Farm(farm.url, farm.api_key).history(urgent.id)}
    steps = [event for event in Farm(farm.url, farm.api_key).history(batch.id) if event.type == "step"]
    first, last = ((float(str(e.data["at"])), int(str(e.data["step"]))) for e in (steps[0], steps[2]))
    return {"start_s": at["running"] - at["queued"], "step_s": (last[0] - first[0]) / max(1, last[1] - first[1])}


def fill(data: Path, count: int) -> None:
    """Jobs that wait: of another tenant, batch class, never reached while the benchmark runs."""
    batches = farm_args(CONFIG, data, "").stores().batches
    for first in range(0, count, 1000):
        jobs = [
            NewJob(
                tenant=f"tenant-{first // 1000}", render_key=f"{number:064d}", model="wan-mini", recipe={}, request={},
                num_steps=20, work_s=5.0, step_s=0.25, priority="batch",
            )
            for number in range(first, min(count, first + 1000))
        ]  # fmt: skip
        batches.create(f"tenant-{first // 1000}", jobs)


def answer_times(client: OpenAI, count: int) -> dict[str, list[float]]:
    """Seconds of calls while a lane is busy; each new job is cancelled, so that the next one starts at once."""
    taken: dict[str, list[float]] = {"create": [], "retrieve": [], "list": [], "cancel": []}

    def timed(name: str, call):
        began = time.monotonic()
        answer = call()
        taken[name].append(time.monotonic() - began)
        return answer

    for number in range(count):
        video = timed("create", lambda n=number: client.videos.create(prompt="A.", extra_body={"seed": str(n)}))
        timed("retrieve", lambda video=video: client.videos.retrieve(video.id))
        timed("list", lambda: client.videos.list(limit=20))
        timed("cancel", lambda video=video: client.post(f"/videos/{video.id}/cancel", cast_to=dict[str, object]))
    return taken


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--urgent", type=int, default=5, help="interactive jobs that find the lane taken")
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with LocalFarm.start(CONFIG, data, port=free_port(), dashboard=False) as farm:
            client = OpenAI(base_url=f"{farm.url}/v1", api_key=farm.api_key)
            one_job(farm, client, 1_000)  # the first one meets cold caches
            jobs = [one_job(farm, client, seed) for seed in range(given.jobs)]
            starts = [urgent_start(farm, client, 500 + seed) for seed in range(given.urgent)]
            busy = client.videos.create(prompt="Long.", extra_body={"num_inference_steps": "1000"})
            while client.videos.retrieve(busy.id).status == "queued":
                time.sleep(0.1)
            fill(data, given.queued)
            taken = answer_times(client, given.calls)
            assert client.videos.retrieve(busy.id).status == "in_progress", "the lane was busy all the time"
            with urllib.request.urlopen(f"{farm.url}/metrics") as page:
                queued = [line for line in page.read().decode().splitlines() if "sakuga_renders{" in line]
    shares = [(job["wall_s"] - job["engine_s"]) / job["engine_s"] for job in jobs]
    result = {
        "overhead_share": statistics.median(shares),
        "overhead_s": statistics.median(job["wall_s"] - job["engine_s"] for job in jobs),
        "engine_s": statistics.median(job["engine_s"] for job in jobs),
        "num_jobs": len(jobs),
        "interactive_start_s": max(start["start_s"] for start in starts),
        "interactive_start_over_a_step_s": max(start["start_s"] - start["step_s"] for start in starts),
        "api_p95_s": p95([seconds for name in ("create", "retrieve", "list") for seconds in taken[name]]),
        "calls": {name: {"p50_s": statistics.median(values), "p95_s": p95(values)} for name, values in taken.items()},
        "num_queued": given.queued,
        "renders": queued,
        "tenant": TENANT,
    }
    print_result(machine_facts() | result, as_json=given.json)


if __name__ == "__main__":
    main()
