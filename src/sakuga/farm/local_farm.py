"""A farm on this machine: Ray, Serve, the job store and an API key, started and ended together.

Run: pytest tests/ray/test_serving.py
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from pydantic import ValidationError
from ray import serve

from sakuga import settings
from sakuga.errors import AuthError, BusyError, ClusterError, InputError, SettingsError
from sakuga.farm import store_actor
from sakuga.farm.cluster import LOGICAL_CPUS, OBJECT_STORE_BYTES, RAY_ENVIRONMENT
from sakuga.farm.pools import FarmArgs
from sakuga.farm.serving import APP_NAME, build

TENANT = "default"
KEY_FILE = "api-key"
SERVE_ENVIRONMENT = {
    # How soon growth is decided: 10 s by default.
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    # Else a wedged lane keeps its bundles for the whole grace.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}
READY_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFarm:
    """A farm that runs."""

    url: str
    api_key: str
    dashboard_url: str | None

    @classmethod
    @contextlib.contextmanager
    def start(
        cls,
        config: Mapping[str, object],
        data: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        address: str | None = None,
        dashboard: bool = True,
    ) -> Iterator[LocalFarm]:
        """Serve for the time of the block; at its end lanes save what they are at.

        Raises SettingsError for a config that cannot be used, BusyError when the port is taken, ClusterError.
        """
        _check_port(host, port)
        data.mkdir(parents=True, exist_ok=True)
        farm = farm_args(config, data, f"http://127.0.0.1:{port}/metrics")
        settings.set_for_libraries(RAY_ENVIRONMENT | SERVE_ENVIRONMENT)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        is_ours = not ray.is_initialized()
        shown = _init_ray(address, dashboard=dashboard) if is_ours else None
        try:
            if serve.status().proxies:
                raise BusyError("this cluster serves something already; deploy there: `serve deploy serve/mini.yaml`")
            serve.start(
                http_options={"host": host, "port": port},
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
            serve.run(build(farm), name=APP_NAME, route_prefix="/", blocking=False)
            url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
            _wait_until_ready(url)
            yield cls(
                url=url,
                api_key=_api_key(farm, data / KEY_FILE),
                dashboard_url=f"http://{shown}" if shown else None,
            )
        finally:
            # Ray tells on stdout of calls to a controller that was ended on purpose.
            with contextlib.redirect_stdout(io.StringIO()):
                with contextlib.suppress(KeyboardInterrupt):
                    serve.shutdown()
                store_actor.end()
                if is_ours:
                    ray.shutdown()


def _init_ray(address: str | None, *, dashboard: bool) -> str | None:
    """Join a cluster, or start one on this machine that ends with this process; where its dashboard is."""
    if address is not None:
        return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR).dashboard_url
    context = ray.init(
        address="local",
        include_dashboard=dashboard,
        num_cpus=max(LOGICAL_CPUS, 2 * (os.cpu_count() or 1)),
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return context.dashboard_url if dashboard else None


def farm_args(config: Mapping[str, object], data: Path, metrics_url: str) -> FarmArgs:
    """The config, checked; jobs and videos go below `data` unless it says otherwise."""
    homes = {
        "store": f"sqlite:///{data / 'jobs.sqlite'}",
        "objects": str(data / "objects"),
        "metrics_url": metrics_url,
    }
    try:
        return FarmArgs.model_validate(homes | dict(config))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise cause from None
        field = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{field} of the farm: {first['msg']}; see serve/mini.yaml") from None


def _api_key(farm: FarmArgs, path: Path) -> str:
    """The key of the first start, for as long as it opens the farm; else a new one."""
    keys = farm.stores().keys
    with contextlib.suppress(OSError, AuthError):
        known = path.read_text().strip()
        keys.authenticate(known)
        return known
    _, secret = keys.create(TENANT, scopes=("read", "write", "admin"))
    path.touch(mode=0o600)
    path.write_text(f"{secret}\n")
    return secret


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BusyError(f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port") from error


def _wait_until_ready(url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), opener.open(f"{url}/readyz", timeout=5):
            return
        time.sleep(0.1)
    raise ClusterError(f"the farm did not get ready within {READY_S:.0f} s; `ray status` and Serve's logs say why")
