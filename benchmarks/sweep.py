"""What a trial of a training sweep costs beside its training, and what a killed driver loses.

    python benchmarks/sweep.py --json

`warm.overhead_s`: from the end of a trial to the first step of the next one in the same executor, which keeps the base
model (median and maximum after the first trial). `nested.overhead_s`: wall seconds of a trial that is a Ray Train run
of one worker, without its steps (median). Both train LoRAs of rank 4 and 8 on drawn dancers, `STEPS` steps each, in
this run. `warm.trials_per_minute` counts from the first result to the last. `resume`: a sweep whose driver and all its
processes are killed in the middle of a trial, and run again: `lost` trials have no result at the end, `run_twice` had
one before and were run again all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from common import machine_facts, print_result  # benchmarks/common.py
from ray import tune

from sakuga import settings
from sakuga.farm.executor import RUNNERS, ExecutorPlan
from sakuga.farm.nested import run_nested
from sakuga.farm.rows import LOCAL, cluster
from sakuga.farm.tune import TUNE_ENVIRONMENT, run_sweep
from sakuga.tuning.search import id_of
from sakuga.tuning.sweepfile import Sweep, parse_sweep
from sakuga.tuning.trials import DONE, SweepFolder, TrialResult

STEPS = 4
BATCH = 2
TOKENS_OF_CLIP = 320
"""17 frames of 128 x 128."""
LIMIT_S = 600.0


def sweep_of(name: str, data: Path, *, ranks: Sequence[int], rates: Sequence[float]) -> Sweep:
    return parse_sweep(
        {
            "name": name,
            "kind": "training",
            "data": str(data),
            "base": {"global_batch_size": BATCH, "warmup_steps": 0, "schedule": "constant"},
            "space": {"rank": list(ranks), "lr": list(rates)},
            "budget": {"tokens": STEPS * BATCH * TOKENS_OF_CLIP},
            "objectives": ["heldout_loss"],
        }
    )


def command(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("sakuga")), *words]


def prepare_data(folder: Path) -> Path:
    data, prepared = folder / "data", folder / "prepared"
    subprocess.run(command("synth", str(data), "--groups", "12"), check=True, stdout=subprocess.DEVNULL)
    words = ("prepare", str(data), "--out", str(prepared), "--where", "world=fairy", "--num-frames", "17")
    subprocess.run(command(*words), check=True, stdout=subprocess.DEVNULL)
    return prepared


def measure_warm(folder: Path, data: Path) -> dict[str, float]:
    sweep = sweep_of("warm", data, ranks=(4, 8), rates=(0.001, 0.002, 0.004))
    place = SweepFolder(folder / "warm")
    run_sweep(sweep, place)
    results = [result for result in place.results() if result.state == DONE]
    after_first = [result.overhead_s for result in results[1:] if result.overhead_s is not None]
    ended = [(place.trial(result.id) / "result.json").stat().st_mtime for result in results]
    return {
        "num_trials": len(results),
        "overhead_s": round(statistics.median(after_first), 3),
        "overhead_max_s": round(max(after_first), 3),
        "first_overhead_s": round(results[0].overhead_s or 0.0, 3),
        "train_s": round(statistics.median(result.figures["train_s"] for result in results), 3),
        "trials_per_minute": round(60 * (len(ended) - 1) / (ended[-1] - ended[0]), 2),
    }


def measure_nested(folder: Path, data: Path) -> dict[str, float]:
    """One worker, as the warm executor is one; a sweep nests only where there are several."""
    sweep = sweep_of("nested", data, ranks=(4, 8), rates=(0.001,))
    place = SweepFolder(folder / "nested")
    place.create(sweep)
    settings.set_for_libraries(TUNE_ENVIRONMENT)
    plan = ExecutorPlan(sweep=sweep, root=str(place.path), runner=RUNNERS["training"], cwd=str(Path.cwd()))
    points = [{"rank": rank, "lr": 0.001} for rank in (4, 8)]
    trials = [{"id": id_of(sweep, point, 0), "point": point, "seed": 0} for point in points]
    with cluster(LOCAL, 2, shows_logs=False):
        tune.Tuner(
            tune.with_resources(tune.with_parameters(run_nested, plan=plan), {"cpu": 0.01}),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(name="ray", storage_path=str(place.path), verbose=0),
        ).fit()
    results = [result for result in place.results() if result.state == DONE]
    assert len(results) == len(points), [result.reason for result in place.results()]
    return {
        "num_trials": len(results),
        "overhead_s": round(statistics.median(result.wall_s - result.figures["train_s"] for result in results), 3),
        "train_s": round(statistics.median(result.figures["train_s"] for result in results), 3),
    }


def measure_resume(folder: Path, data: Path) -> dict[str, float]:
    sweep = sweep_of("resume", data, ranks=(2, 4), rates=(0.001, 0.002))
    place = SweepFolder(folder / "sweeps" / "resume")
    file = folder / "resume.yaml"
    file.write_text(json.dumps(sweep.model_dump(mode="json")))  # JSON is YAML
    words = command("sweep", str(file), "--out", str(place.path.parent), "--json")
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + LIMIT_S
    while not (len(place.results()) >= 2 and list(place.trials.glob("*/state/trial.json"))):
        assert driver.poll() is None and time.monotonic() < deadline, "the sweep ended before it could be killed"
        time.sleep(0.01)
    for process in (psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait()
    before = _results(place)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
    after = _results(place)
    return {
        "num_trials": len(after),
        "ended_before": len(before),
        "lost": 4 - sum(result.state == DONE for result in after.values()),
        "run_twice": sum(after.get(trial_id) != result for trial_id, result in before.items()),
    }


def _results(place: SweepFolder) -> dict[str, TrialResult]:
    """By id; one that was run again differs, at least in its seconds."""
    return {result.id: result for result in place.results()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no readable form on stderr, only the JSON line")
    args = parser.parse_args()
    settings.set_for_libraries({"OMP_WAIT_POLICY": "passive"})
    result: dict[str, object] = {"benchmark": "sweep", **machine_facts(), "steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(Path(folder))
        result["warm"] = measure_warm(Path(folder), data)
        result["nested"] = measure_nested(Path(folder), data)
        result["resume"] = measure_resume(Path(folder), data)
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
