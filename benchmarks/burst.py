"""Bursts of users on a farm that scales: our policy against Ray Serve's own, on one simulated cluster in virtual time.

    python benchmarks/burst.py --json [--trace FILE]

Both policies are the code that Serve would run: `BacklogPolicy.decide`, and Ray's default policy with the delays that
Serve puts around it, called with a real `AutoscalingContext`. The cluster: at most 16 lanes, one render a lane, first
come first served, 30 s from the decision to a lane that works; a lane that is stopped in a render ends it first, as a
drained one would, and is paid until then. GPU-hours count from the decision to the end of a lane.

A trace is CSV, `arrival_s,work_s`. Without one: `generated`, sessions of requests with a log-normal pace, fitted to the
published figures of GenTD26 (26,823 requests in 23 days, inter-arrival CV 12, index of dispersion 27 per ten minutes,
half of these windows empty, 24.5 s of work in the median). The arrivals of GenTD26 itself are its requests' creation
times and execution seconds, where those are above 0.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from burst_live import live
from burst_model import Ours, ServeDefault, replay
from common import machine_facts, print_result


def generated(seed: int = 1, count: int = 26_823) -> list[tuple[float, float]]:
    """Sessions, a sixth of them long, of requests whose pace drifts; nights, and a few sudden spikes."""
    draw, arrivals, now = np.random.default_rng(seed), [], 0.0
    while len(arrivals) < count:
        is_long = draw.random() < 0.17
        length = int(min(2500, max(1, round(np.exp(draw.normal(*((5.7, 1.15) if is_long else (1.35, 1.1))))))))
        mean, spread = (2.5, 1.33) if is_long else (4.0, 1.5)
        drift = draw.normal()
        for number in range(length):
            arrivals.append(now)
            if draw.random() < 1 / 4000:
                arrivals += list(now + np.cumsum(draw.exponential(1.0, draw.geometric(1 / 20))))
            if number + 1 < length:
                drift = 0.99 * drift + np.sqrt(1 - 0.99**2) * draw.normal()
                now += min(600, np.exp(mean + spread * (np.sqrt(0.3) * drift + np.sqrt(0.7) * draw.normal())))
        night = draw.random() < 0.09
        now += draw.uniform(4 * 3600, 13.5 * 3600) if night else max(600, np.exp(draw.normal(7.25, 0.7)))
    work_s = np.minimum(np.exp(draw.normal(3.196, 0.549, count)), 567)
    return [(float(at), float(seconds)) for at, seconds in zip(sorted(arrivals[:count]), work_s, strict=True)]


def read_trace(path: Path) -> list[tuple[float, float]]:
    """Rows of two numbers; a header is allowed."""
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and not row[0].lower().startswith("arrival")]
    arrivals = sorted((float(at), float(work_s)) for at, work_s in rows)
    return [(at - arrivals[0][0], work_s) for at, work_s in arrivals]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trace", type=Path, help="CSV of arrival_s,work_s; generated without it")
    parser.add_argument("--live", action="store_true", help="twenty minutes of it at 10x on the real Serve")
    parser.add_argument("--seed", type=int, default=1, help="of the generated trace")
    given = parser.parse_args()
    arrivals = read_trace(given.trace) if given.trace else generated(given.seed)
    if given.live:
        print_result(machine_facts() | {"benchmark": "burst_live"} | live(arrivals), as_json=given.json)
        return
    backlog = replay(arrivals, Ours(), 0).result()
    default = replay(arrivals, ServeDefault(), 1).result()
    result = {
        "trace": given.trace.name if given.trace else f"generated, seed {given.seed}",
        "num_requests": len(arrivals),
        "days": round(arrivals[-1][0] / 86400, 2),
        "backlog": backlog,
        "serve_default": default,
        "p95_ratio": round(backlog["p95_wait_s"] / max(default["p95_wait_s"], 1e-9), 3),
        "gpu_hours_ratio": round(backlog["gpu_hours"] / default["gpu_hours"], 3),
    }
    print_result(machine_facts() | result, as_json=given.json)


if __name__ == "__main__":
    main()
