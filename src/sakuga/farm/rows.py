"""Rows of work over a pool of actors by Ray Data, on the cluster that is there or on one of our own.

What bulk rendering and data preparation share: one row a block, a pool of fixed size, results as they are done. An
actor answers with columns and never with an error, which would fail the whole job.

Run: pytest tests/ray/test_bulk.py
"""

import contextlib
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence

import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from sakuga import settings
from sakuga.errors import ClusterError, DeviceError, shown
from sakuga.farm.cluster import LOGICAL_CPUS, OBJECT_STORE_BYTES, RAY_ENVIRONMENT

log = logging.getLogger(__name__)

LOCAL = "local"
RAY_FAILURES = (RayError, SystemException, ExecutionTimeoutError, ConnectionError)
WORKER_DEVICES = ("cpu", "cuda")
HEADROOM_CPUS = 4  # logical CPUs that Ray Data's own tasks want beside the workers


def check_worker_device(name: str) -> None:
    """Raises DeviceError for all but cpu and cuda: Ray shows each worker one GPU, which it sees as cuda:0."""
    if name not in WORKER_DEVICES:
        raise DeviceError(f"device {shown(name)} is not for workers: Ray gives each worker a GPU; take cpu or cuda")


def gpu_shortage(num_gpus: float, num_workers: int) -> str | None:
    """What is wrong when each worker wants a GPU, or None.

    >>> gpu_shortage(2, 3)
    '3 workers want a GPU each and Ray sees 2; use --num-workers 2'
    """
    if num_workers <= num_gpus:
        return None
    cure = f"--num-workers {num_gpus:.0f}" if num_gpus >= 1 else "--device cpu, or see `sakuga doctor`"
    plural = "s want a GPU each" if num_workers > 1 else " wants a GPU"
    return f"{num_workers} worker{plural} and Ray sees {num_gpus:.0f}; use {cure}"


def check_gpus(num_workers: int, *, may_grow: bool) -> None:
    """Ray would wait for ever for a GPU that nobody adds."""
    shortage = gpu_shortage(ray.cluster_resources().get("GPU", 0), num_workers)
    if shortage is None:
        return
    if not may_grow:
        raise ClusterError(shortage)
    log.warning("%s, unless the cluster adds nodes; the run waits for them", shortage)


def outcomes(
    rows: Sequence[Mapping[str, object]], worker: type, plan: object, *, num_workers: int, num_gpus: int
) -> Generator[dict[str, object]]:
    """What `worker(plan)` answers to each row, in the order in which they are done."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every execution, amid our bars
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # One row a block, in the order given; a repartition would give the same blocks in any order, 2 s later.
    results = ray.data.from_items([dict(row) for row in rows], override_num_blocks=len(rows)).map_batches(
        worker,
        fn_constructor_args=(plan,),
        batch_size=1,
        # One task in flight: a second one would wait behind a busy worker while another is idle at the end.
        compute=ray.data.ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=num_gpus,
    )
    # No prefetch: it would hold back each result until the next row is done.
    for columns in results.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy"):
        yield {str(name): values[0] for name, values in columns.items()}


@contextlib.contextmanager
def cluster(address: str | None, num_workers: int, *, shows_logs: bool = True) -> Iterator[None]:
    """A connection to Ray for the block; one that exists already is used and kept.

    Without `shows_logs` what workers say stays in Ray's own log files.
    """
    if ray.is_initialized():
        yield
        return
    settings.set_for_libraries(RAY_ENVIRONMENT)
    try:
        if address == LOCAL:
            ray.init(
                address=LOCAL,
                num_cpus=max(LOGICAL_CPUS, num_workers + HEADROOM_CPUS),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                log_to_driver=shows_logs,
            )
        else:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=shows_logs)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at {address or 'auto'} ({error}); start one, or use --address local"
        ) from error
    try:
        if ray.cluster_resources().get("CPU", 0) < num_workers + 1:
            log.warning("the cluster has few logical CPUs for %d workers; Ray Data may stall", num_workers)
        yield
    finally:
        ray.shutdown()
