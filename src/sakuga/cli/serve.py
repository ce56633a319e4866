"""`sakuga serve`: the whole farm on this machine, until Ctrl-C."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from sakuga.cli.output import print_json, stdout_console
from sakuga.errors import InputError, SettingsError, shown

DATA = Path("sakuga-farm")
KEY_FILE = "api-key"
DEFAULT_URL = "http://127.0.0.1:8000"
CONFIG_FORM = "the `args` of a Serve config, see serve/mini.yaml"


def serve(
    model: Annotated[str, typer.Option(help="What to serve.")] = "wan-mini",
    lanes: Annotated[int, typer.Option(min=1, help="How many renders at once, at most.")] = 1,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that share one render.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    config: Annotated[Path | None, typer.Option(help=f"Instead of the options above: {CONFIG_FORM}.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of jobs, videos and the API key.")] = DATA,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; without it one is started.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address and the key as JSON.")] = False,
) -> None:
    """Serve videos over HTTP: jobs that survive a restart, lanes that render, an OpenAI-compatible API."""
    from sakuga.farm.local_farm import LocalFarm

    chosen = _config(config) if config is not None else _pool(model, lanes, ranks, device)
    stop = threading.Event()
    with LocalFarm.start(chosen, data.resolve(), host=host, port=port, address=address) as farm:
        for number in (signal.SIGINT, signal.SIGTERM):  # now: Ray sets its own at its start
            signal.signal(number, lambda *_: stop.set())
        if as_json:
            print_json({"url": farm.url, "api_key": farm.api_key, "dashboard": farm.dashboard_url, "pid": os.getpid()})
        else:
            _greet(farm.url, farm.api_key, farm.dashboard_url)
        stop.wait()
        if not as_json:
            stdout_console.print("saving what is under way …")


def _greet(url: str, api_key: str, dashboard_url: str | None) -> None:
    dashboard = f", dashboard {dashboard_url}" if dashboard_url else ""
    print(f"serving on {url}/v1, described in {url}/openapi.json{dashboard}")
    print(f"API key {api_key}\n")
    print(f"  curl {url}/v1/videos -H 'Authorization: Bearer {api_key}' -F prompt='A fairy dances in the rain.'\n")
    where = "" if url == DEFAULT_URL else f" --url {url}"
    print(f"  sakuga submit{where} --watch 'A fairy dances in the rain.'\n")
    print("Ctrl-C ends it; jobs that are under way go on at the next start.", flush=True)


def _pool(model: str, lanes: int, ranks: int, device: str) -> dict[str, object]:
    """The best plan for so many ranks."""
    from sakuga.parallel.plan import legal_plans
    from sakuga.wan.catalogue import card

    plan = legal_plans(ranks, num_heads=card(model).dit.num_heads)[0]
    pool = {
        "model": model,
        "device": device,
        "cfg": plan.cfg,
        "ulysses": plan.ulysses,
        "ring": plan.ring,
        "allow_unverified": ranks > 1,
        "scaling": {"min_lanes": lanes, "max_lanes": lanes},
    }
    return {"pools": [pool]}


def _config(path: Path) -> dict[str, object]:
    import yaml

    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{shown(path)} is no YAML: {' '.join(str(error).split())}") from error
    if isinstance(read, dict) and "applications" in read:  # a whole Serve config
        read = read["applications"][0].get("args", {})
    if not isinstance(read, dict):
        raise InputError(f"{shown(path)} holds {json.dumps(read)[:40]}; it must hold {CONFIG_FORM}")
    return read
