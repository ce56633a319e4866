"""`/metrics`: what waits and runs, from the store; requests, from the API; and what the farm adds. No ids as labels.

Run: pytest tests/unit/test_api_health.py
"""

from collections import defaultdict
from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from sakuga.api.deps import ApiDeps
from sakuga.jobstore import AuditTally, Backlog, ProfileEntry

router = APIRouter()
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class HttpMetrics:
    """Requests by method, route (its pattern) and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self._count = Counter("sakuga_http_requests", "Requests answered", labels, registry=registry)
        self._seconds = Histogram(
            "sakuga_http_request_seconds", "Until the answer was sent", ("method", "route"), buckets=SECONDS,
            registry=registry,
        )  # fmt: skip

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in ("GET", "POST", "DELETE") else "other"  # the client's word is no label
        self._count.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class QueueMetrics:
    """The queue of each model that is served, and the number of jobs in each state."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps

    def collect(self) -> Iterable[Metric]:
        found = self._deps.stores.jobs.backlog()
        nothing = Backlog(queued_s=0.0, running_s=0.0, num_queued=0, num_running=0, oldest_wait_s=0.0)
        backlog = {name: found.get(name, nothing) for name in {**self._deps.models, **found}}
        seconds = {
            "queued_seconds": ("Predicted seconds of work that waits", "queued_s"),
            "running_seconds": ("Predicted rest of what is rendered", "running_s"),
            "oldest_wait_seconds": ("Age of the oldest render that waits", "oldest_wait_s"),
        }
        for name, (told, field) in seconds.items():
            family = GaugeMetricFamily(f"sakuga_{name}", told, labels=("model",))
            for model, each in backlog.items():
                family.add_metric((model,), getattr(each, field))
            yield family
        renders = GaugeMetricFamily("sakuga_renders", "Renders in flight", labels=("model", "state"))
        for model, each in backlog.items():
            renders.add_metric((model, "queued"), each.num_queued)
            renders.add_metric((model, "running"), each.num_running)
        yield renders
        jobs = GaugeMetricFamily("sakuga_jobs", "Jobs by state, deleted ones apart", labels=("state",))
        for state, number in self._deps.stores.jobs.counts().items():
            jobs.add_metric((state,), number)
        yield jobs


class ProfileMetrics:
    """What audits say of promoted profiles, by name; from the store, so that a restart loses nothing."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps

    def collect(self) -> Iterable[Metric]:
        tally, versions = self._deps.stores.audits.tally(), defaultdict[tuple[str, str], list[ProfileEntry]](list)
        for entry in self._deps.stores.profiles.versions():
            versions[entry.model, entry.name].append(entry)
        names = ("model", "profile")
        audits = CounterMetricFamily("sakuga_profile_audits", "Renders held to a reference", labels=(*names, "passed"))
        state = GaugeMetricFamily("sakuga_profile_state", "1: of the newest version", labels=(*names, "state"))
        rollbacks = CounterMetricFamily("sakuga_profile_rollbacks", "Versions rolled back", labels=names)
        gone = self._deps.stores.profiles.num_rollbacks() if versions else {}
        for key, entries in versions.items():
            ended = [tally.get(entry.id, AuditTally()) for entry in entries]
            audits.add_metric((*key, "true"), sum(each.passed for each in ended))
            audits.add_metric((*key, "false"), sum(each.failed for each in ended))
            rollbacks.add_metric(key, gone.get(key, 0))
            for each in ("canary", "active", "rolled_back", "retired"):
                state.add_metric((*key, each), float(each == _state_of(entries[-1])))
        yield from (audits, rollbacks, state)


def _state_of(entry: ProfileEntry) -> str:
    return "rolled_back" if entry.reason == "rolled_back" else entry.state


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
