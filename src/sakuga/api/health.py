"""`/healthz`: this process answers. `/readyz`: it can also do its work; without a key, for whoever routes to it.

Run: pytest tests/unit/test_api_health.py
"""

import logging
import threading
from typing import Literal

import anyio
from fastapi import APIRouter, Request
from pydantic import BaseModel

from sakuga.api.deps import ApiDeps
from sakuga.api.wire import Problem
from sakuga.engine.resolve import located
from sakuga.errors import SakugaError, StoreError, WeightsError

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])
PATIENCE_S = 2.0


class Health(BaseModel):
    """It is well."""

    status: Literal["ok"] = "ok"


class Warmup:
    """Finds and hashes the weights of all models before the first request needs it: minutes for a large one."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps
        self.error: SakugaError | None = WeightsError("the weights are still being read; wait")

    def start(self) -> None:
        threading.Thread(target=self._run, name="warmup", daemon=True).start()

    def _run(self) -> None:
        try:
            for served in self._deps.models.values():
                located(served.card, served.weights)
            self.error = None
        except SakugaError as error:
            logger.exception("the weights cannot be read")
            self.error = error


@router.get("/healthz")
async def healthz() -> Health:
    """Whether this process answers."""
    return Health()


@router.get("/readyz", responses={503: {"model": Problem}})
async def readyz(request: Request) -> Health:
    """Whether requests would be taken: weights are found, the store answers."""
    state = request.app.state
    if state.warmup.error is not None:
        raise state.warmup.error
    try:
        with anyio.fail_after(PATIENCE_S):
            await anyio.to_thread.run_sync(state.deps.stores.jobs.counts, abandon_on_cancel=True)
    except TimeoutError:
        raise StoreError("the job store does not answer; requests would wait for it") from None
    return Health()
