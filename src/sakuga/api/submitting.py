"""The last steps before a job is the farm's: is there room, its pictures into storage, one write to the store.

Run: pytest tests/unit/test_api_limits.py
"""

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sakuga.api.deps import ApiDeps
from sakuga.api.errors import DoubtfulError, KeyReusedError, LimitError, QueueFullError
from sakuga.api.preparing import Prepared
from sakuga.errors import ConflictError, StoreError
from sakuga.jobstore import Idempotency, Job
from sakuga.jobstore.keys import ApiKey
from sakuga.jobstore.queue import HALF_LIFE_S

QUEUE_FULL_S = 30
UNCLAIMED_S = 3600.0
"""How long an upload waits for its job to be written."""
POLICY = '"gpu-seconds"'


def check_room(deps: ApiDeps, key: ApiKey, work_s: float, num_jobs: int = 1) -> dict[str, str]:
    """RateLimit headers for an answer to so much more work. Raises QueueFullError or LimitError.

    What a tenant used fades with time (`HALF_LIFE_S`), what it has in flight counts as predicted.
    """
    most = deps.settings.max_queued_jobs
    num_queued = deps.stores.jobs.num_queued()
    if num_queued + num_jobs > most:
        sentence = f"{num_queued} jobs wait, {most} may; try again later"
        raise QueueFullError(sentence, {"retry-after": str(QUEUE_FULL_S)})
    quota = key.quota_gpu_s
    if quota is None:
        return {}
    counted = deps.stores.jobs.used_gpu_s(key.tenant) + deps.stores.jobs.in_flight_s(key.tenant)
    policy = {"ratelimit-policy": f"{POLICY};q={quota:.0f};w={HALF_LIFE_S:.0f}"}
    left = quota - counted - work_s
    if left >= 0:
        return policy | {"ratelimit": f"{POLICY};r={left:.0f};t={HALF_LIFE_S:.0f}"}
    told = f"{work_s:.0f} more GPU-seconds are asked for, and {counted:.0f} of {quota:.0f} are used or on their way"
    if work_s >= quota:
        raise LimitError(f"{told}; it is more than this key ever has", policy | {"x-should-retry": "false"})
    wait_s = math.ceil(HALF_LIFE_S * math.log2(counted / (quota - work_s)))
    headers = {"ratelimit": f"{POLICY};r={max(0.0, quota - counted):.0f};t={wait_s}", "retry-after": str(wait_s)}
    raise LimitError(f"{told}; try again in {wait_s} s", policy | headers)


@contextmanager
def first_use() -> Generator[None]:
    """Around a look for what was made under an Idempotency-Key. Raises KeyReusedError for another request."""
    try:
        yield
    except ConflictError as error:
        raise KeyReusedError(error.message) from error


def submit(
    deps: ApiDeps, key: ApiKey, prepared: Prepared, idempotency: Idempotency | None
) -> tuple[Job, dict[str, str]]:
    """The job, and headers for its answer. What it raises came before the commit, DoubtfulError apart."""
    headers = check_room(deps, key, prepared.job.work_s)
    store(deps, prepared.uploads)
    with settled(idempotency):
        return deps.stores.jobs.submit(prepared.job, idempotency_key=idempotency), headers


def store(deps: ApiDeps, uploads: Mapping[str, Path]) -> None:
    """Bring files into storage. Those that no job names after a while are removed again."""
    if uploads:
        deps.stores.jobs.discard(list(uploads), UNCLAIMED_S)
    for name, path in uploads.items():
        deps.objects.put(name, path)


@contextmanager
def settled(idempotency: Idempotency | None) -> Generator[None]:
    """Around a commit: when it fails, only a key of the client's can tell whether it was done."""
    try:
        yield
    except StoreError as error:
        if idempotency is not None:
            raise
        raise DoubtfulError(
            "the job store failed, and whether it has the job is not known; look at your list, or send an "
            "Idempotency-Key with each request"
        ) from error
