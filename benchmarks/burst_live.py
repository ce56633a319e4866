"""The live half of burst.py: twenty minutes of a trace at ten times the speed on the real Serve, store and policy.

Lanes are simulated ones: they claim, sleep and publish. Their number, as Serve has it, is held against the simulation
of the same minutes: at each moment it should be within one lane of what the simulation has within two seconds of it.
"""

from __future__ import annotations

import bisect
import socket
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

from burst_model import Farm, Ours, replay
from ray import serve

from sakuga.cost import DEVICES, Estimate, Planned, estimate
from sakuga.farm.local_farm import LocalFarm, farm_args
from sakuga.jobstore import NewJob
from sakuga.recipe import RenderRecipe
from sakuga.wan.catalogue import card

SPEED = 10.0
WINDOW_S = 1200.0
SAMPLE_S = 0.25
STEP_S = 0.25
"""Of the trace's time; a step of a simulated lane."""
NEAR_S, NEAR_LANES = 2.0, 1
MODEL = "wan-mini"


def excerpt(arrivals: list[tuple[float, float]], peak: int = 6) -> list[tuple[float, float]]:
    """The first twenty minutes, after a silence, for which the simulation wants `peak` lanes and no more."""
    starts = [at for (before, _), (at, _) in pairwise(arrivals) if at - before > WINDOW_S]
    for start in starts:
        window = [(at - start + 1.0, work_s) for at, work_s in arrivals if start <= at < start + WINDOW_S]
        if len(window) >= 20 and max(wanted for _, wanted in replay(window, Ours(), 0).counts) == peak:
            return window
    raise SystemExit(f"no twenty minutes of this trace want {peak} lanes")


def recipe(num_steps: int, seed: int) -> RenderRecipe:
    return RenderRecipe(
        model=MODEL, weights_sha256="0" * 64, prompt="A dancer.", width=128, height=128, num_frames=33, seed=seed,
        num_inference_steps=num_steps,
    )  # fmt: skip


def steps_of(work_s: float, one: Estimate) -> int:
    """With which encoding, steps and decoding take so long."""
    besides_s = (one.encode_s + one.decode_s) / one.step_s * STEP_S
    return min(1000, max(1, round((work_s - besides_s) / STEP_S)))


def live(arrivals: list[tuple[float, float]]) -> dict[str, object]:
    """Replay, watch, compare."""
    window = excerpt(arrivals)
    simulated = replay(window, Ours(), 0)
    one = estimate(recipe(1, 0), card(MODEL), Planned(), DEVICES["h100"])
    config = {
        "pools": [
            {
                "model": MODEL,
                "simulated": {"device": "h100", "speed": one.step_s / STEP_S * SPEED},
                "scaling": {"min_lanes": 0, "max_lanes": 16, "patience_s": 11.0 / SPEED, "keep_s": 635.0 / SPEED},
            }
        ]
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with LocalFarm.start(config, data, port=port, dashboard=False):
            jobs = farm_args(config, data, f"http://127.0.0.1:{port}/metrics").stores().jobs
            began, seen, over = time.monotonic(), [], threading.Event()

            def watch() -> None:
                while not over.wait(SAMPLE_S):
                    states = serve.status().applications["sakuga"].deployments[f"lanes-{MODEL}"].replica_states
                    alive = sum(number for state, number in states.items() if "STOPPING" not in str(state))
                    seen.append((time.monotonic() - began, alive))

            thread = threading.Thread(target=watch)
            thread.start()
            for number, (at, work_s) in enumerate(window):
                time.sleep(max(0.0, began + at / SPEED - time.monotonic()))
                each = recipe(steps_of(work_s, one), number)
                jobs.submit(
                    NewJob(
                        tenant="app", render_key=each.render_key, model=MODEL, recipe=each.as_dict(), request={},
                        num_steps=each.num_inference_steps, work_s=work_s / SPEED, step_s=STEP_S / SPEED,
                    )
                )  # fmt: skip
            while time.monotonic() - began < WINDOW_S / SPEED:
                time.sleep(0.5)
            over.set()
            thread.join()
            counts = dict(jobs.counts())
    follows = [is_near(simulated, at, alive) for at, alive in seen]
    return {
        "window_requests": len(window),
        "jobs": counts,
        "num_samples": len(seen),
        "follows_share": round(sum(follows) / len(follows), 3),
        "peak_live": max(alive for _, alive in seen),
        "peak_simulated": max(wanted for _, wanted in simulated.counts),
        "lane_seconds_live": round(sum(alive for _, alive in seen) * SAMPLE_S),
        "lane_seconds_simulated": round(sum(lanes_at(simulated, at * SPEED) for at, _ in seen) * SAMPLE_S),
    }


def lanes_at(simulated: Farm, at: float) -> int:
    index = bisect.bisect_right(simulated.counts, (at, 1 << 30)) - 1
    return simulated.counts[index][1] if index >= 0 else 0


def is_near(simulated: Farm, at: float, alive: int) -> bool:
    """Within a lane of the simulation at some moment that near."""
    moments = [at - NEAR_S, at + NEAR_S, *(change / SPEED for change, _ in simulated.counts)]
    near = [moment for moment in (*moments, at) if abs(moment - at) <= NEAR_S]
    return any(abs(lanes_at(simulated, moment * SPEED) - alive) <= NEAR_LANES for moment in near)
