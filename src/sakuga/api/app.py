"""The application: routes, errors, the edge around them, and what is begun with it.

Run: pytest tests/unit/test_api_videos.py tests/unit/test_api_openapi.py
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

import sakuga
from sakuga.api import batches, content, events, health, hooks, loras, metrics, models, profiles, videos
from sakuga.api.deps import ApiDeps
from sakuga.api.documents import sweep
from sakuga.api.edge import Edge
from sakuga.api.errors import answer
from sakuga.api.health import Warmup
from sakuga.api.metrics import HttpMetrics, ProfileMetrics, QueueMetrics
from sakuga.errors import SakugaError

HANDLED = (SakugaError, HTTPException, RequestValidationError, ClientDisconnect)
ROUTERS = (
    videos.router, content.router, events.router, batches.router, loras.router, models.router, profiles.router,
    hooks.router, health.router, metrics.router,
)  # fmt: skip


def create_app(deps: ApiDeps) -> FastAPI:
    """The API of a farm; one for each process that answers."""
    sweep(deps.scratch)
    app = FastAPI(
        title="Sakuga",
        version=sakuga.__version__,
        description="Videos from Wan models. The routes of /v1/videos are those of OpenAI's API.",
        docs_url=None,  # the page would load its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    registry = CollectorRegistry()
    registry.register(QueueMetrics(deps))
    registry.register(ProfileMetrics(deps))
    registry.register(deps.metrics)
    app.state.deps, app.state.registry, app.state.warmup = deps, registry, Warmup(deps)
    app.add_middleware(Edge, settings=deps.settings, metrics=HttpMetrics(registry))
    for router in ROUTERS:
        app.include_router(router)
    for kind in HANDLED:
        app.add_exception_handler(kind, _answer)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.warmup.start()
    yield


async def _answer(request: Request, error: Exception) -> Response:
    response = answer(request.url.path, error)
    if response.status_code == 405:  # the framework names the methods of one route, and a path may have several
        routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
        here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        methods = {method for route in here for method in route.methods or ()}
        response.headers["allow"] = ", ".join(sorted(methods)) or response.headers["allow"]
    return response
