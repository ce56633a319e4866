"""A seeded chaos run: the job store's owner, lanes on Ray and users, while processes die and storage fails.

    python tests/chaos.py --seconds 90 --seed 7 --json

For so long users order, cancel and delete videos while lanes and the owner are killed or stopped and storage refuses,
fills up, stalls, answers wrongly or is cut. Then everything is left alone until no job waits, the processes are ended,
storage is swept, and `history.py` checks what must hold. The same seed gives the same disturbances and orders; what
meets what is up to the machine.     Run: pytest tests/ray/test_chaos.py
"""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import ray
from rich.console import Console
from rich.table import Table

from chaos_farm import Farm, disturbed, plan, until
from chaos_users import Receiver, User
from history import lost_jobs, outages_s, percentile, published_twice, recoveries_s, requeues_s, violations
from history_rows import History, read_tables
from sakuga import settings
from sakuga.farm.cluster import LOGICAL_CPUS, OBJECT_STORE_BYTES, RAY_ENVIRONMENT
from sakuga.jobstore import open_stores
from sakuga.jobstore.keeper import Keeper
from sakuga.media.files import sha256_of
from sakuga.storage.objects import FolderObjects

NUM_USERS = 3
ORDER_PAUSE_S = 0.7
"""Between two orders of a user: together a little less than the lanes can do."""
DRAIN_LIMIT_S = 90.0
QUIET_S = 2.0
"""Without a message that is due; one that was not reported is due again after 1 s."""
AHEAD_S = 2 * 3600.0
"""Beyond the hour after which a lane that was given up for lost has stopped writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures of a run."""

    seed: int
    seconds: float
    wall_s: float
    jobs: int
    """Acknowledged."""
    ended: dict[str, int]
    renders: int
    attempts: int
    resumed: int
    """Attempts that went on from a snapshot."""
    kills: dict[str, int]
    faults: dict[str, int]
    lost: int
    published_twice: int
    stale_writes_refused: int
    dead_letters: int
    jobs_per_s: float
    requeued_p50_s: float | None
    """From a kill to the end of the attempt in the store."""
    requeued_p95_s: float | None
    recovery_p50_s: float | None
    """From a kill to the render's next claim, which also waits for its turn, or to its end."""
    recovery_p95_s: float | None
    store_back_p50_s: float | None
    store_back_p95_s: float | None
    violations: list[str]


def run(folder: Path, *, seconds: float, seed: int) -> Report:
    """On the Ray cluster of this process."""
    began = time.monotonic()
    farm, over, silence = Farm.start(folder), threading.Event(), threading.Event()
    objects = FolderObjects(folder / "objects")
    (folder / "picture").write_bytes(b"what users upload")
    users = [User(number, seed, farm.stores, objects, folder / "picture", over) for number in range(NUM_USERS)]
    receiver = Receiver(seed, farm.stores)
    try:
        with ThreadPoolExecutor(NUM_USERS + 1) as threads:
            at_work = [threads.submit(user.run, ORDER_PAUSE_S) for user in users]
            listening = threads.submit(receiver.run, silence)
            try:
                disturbed(farm, plan(seed, seconds), seconds)
                over.set()
                counts = drained(farm, at_work, receiver)
            finally:
                over.set()
                silence.set()
        listening.result()
    finally:
        alive = farm.end()
    history = History(
        tables=swept(folder, farm.url),
        orders=[order for user in users for order in user.orders],
        calls=[call for user in users for call in user.calls],
        messages=receiver.messages,
        kills=farm.kills,
        **stored(objects),
        counts=counts,
        alive=alive,
    )
    return report(history, farm, seed=seed, seconds=seconds, wall_s=time.monotonic() - began)


def drained(farm: Farm, users: list[Future], receiver: Receiver) -> dict[str, int]:
    """Nobody disturbs until no job waits and every message has arrived; the store's counts then."""

    def is_over() -> bool:
        farm.supervise()
        if not all(user.done() for user in users):
            return False
        counts = farm.stores.jobs.counts()
        return not counts["queued"] + counts["running"] and time.monotonic() - receiver.quiet_since > QUIET_S

    with contextlib.suppress(TimeoutError):  # the history says what did not end
        until(is_over, DRAIN_LIMIT_S, "drained")
    for user in users:
        user.result()
    return dict(farm.stores.jobs.counts())


def swept(folder: Path, url: str):
    """The tables, after the keeper has cleared storage away as it will in two hours."""
    stores = open_stores(url, clock=lambda: time.time() + AHEAD_S)
    Keeper(stores, FolderObjects(folder / "objects")).sweep()
    stores.jobs.engine.dispose()
    return read_tables(folder / "jobs.sqlite")


def stored(objects: FolderObjects) -> dict:
    """Every file in storage."""
    names = {path.relative_to(objects.root).as_posix(): path for path in objects.root.rglob("*") if path.is_file()}
    manifests = {name: json.loads(path.read_text()) for name, path in names.items() if path.name == "manifest.json"}
    return {"objects": {name: sha256_of(path) for name, path in names.items()}, "manifests": manifests}


def report(history: History, farm: Farm, *, seed: int, seconds: float, wall_s: float) -> Report:
    tables, seen = history.tables, [json.loads(line) for line in lines(farm.folder / "lanes")]
    recovered, back = recoveries_s(tables.attempts, history.kills), outages_s(history.calls, history.kills)
    requeued = requeues_s(tables.attempts, history.kills)
    jobs = {call.job_id for call in history.calls if call.op == "submit" and call.is_acknowledged}
    kills = Counter(kill.kind for kill in history.kills)
    kills["cut_upload"] = sum(1 for _ in farm.folder.glob("cut.*"))
    return Report(
        seed=seed,
        seconds=seconds,
        wall_s=round(wall_s, 1),
        jobs=len(jobs),
        ended=dict(Counter(job.state for job in tables.jobs)) | {"deleted": sum(job.is_deleted for job in tables.jobs)},
        renders=len(tables.renders),
        attempts=len(tables.attempts),
        resumed=sum(row.first_step > 0 for row in tables.attempts),
        kills=dict(kills),
        faults=dict(farm.faults),
        lost=len(lost_jobs(history)),
        published_twice=len(published_twice(history)),
        stale_writes_refused=sum("refused" in each for each in seen),
        dead_letters=sum(row.error_code == "E_DEAD_LETTER" for row in tables.renders),
        jobs_per_s=round(len(jobs) / wall_s, 2),
        requeued_p50_s=rounded(percentile(requeued, 0.5)),
        requeued_p95_s=rounded(percentile(requeued, 0.95)),
        recovery_p50_s=rounded(percentile(recovered, 0.5)),
        recovery_p95_s=rounded(percentile(recovered, 0.95)),
        store_back_p50_s=rounded(percentile(back, 0.5)),
        store_back_p95_s=rounded(percentile(back, 0.95)),
        violations=violations(history),
    )


def lines(folder: Path) -> Iterator[str]:
    for path in folder.glob("*.jsonl"):
        yield from path.read_text().splitlines()


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    settings.set_for_libraries(RAY_ENVIRONMENT)
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def show(figures: Report, folder: Path) -> None:
    table = Table(show_header=False, box=None)
    for name, value in asdict(figures).items():
        if name != "violations":
            told = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else value
            table.add_row(name, "-" if told is None else str(told))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for each in figures.violations:
        console.print(each, markup=False)
    again = f"python tests/chaos.py --seconds {figures.seconds:g} --seed {figures.seed}"
    console.print(f"broken; what is left is in {folder}; again: {again}" if figures.violations else "nothing is broken")


def main() -> int:
    parser = argparse.ArgumentParser(description=cast("str", __doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="how long the farm is disturbed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sakuga-chaos-"))
    with local_ray():
        figures = run(folder, seconds=given.seconds, seed=given.seed)
    show(figures, folder)
    if given.json:
        print(json.dumps(asdict(figures)))
    if not figures.violations:
        shutil.rmtree(folder)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
