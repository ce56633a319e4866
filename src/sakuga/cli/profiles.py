"""`sakuga profiles`: what a farm's requests can name, how its audits went, and what an operator does about it.

Run: pytest tests/unit/test_cli_profiles.py
"""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, cast
from urllib.parse import quote

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sakuga.cli.client import ApiKey, Farm, Url
from sakuga.cli.job_view import age_of, plain
from sakuga.cli.output import AsJson, finish
from sakuga.errors import ProfileError, shown

Entry = Mapping[str, object]
Name = Annotated[str, typer.Argument(help="Of the profile.")]
Version = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="If no version is given, the one in canary.")]
Model = Annotated[str | None, typer.Option(help="When profiles of several models have this name.")]
FIGURES = {"ref_ssim": "ref_ssim {:.3f}", "ref_psnr_db": "{:.1f} dB"}
STYLES = {"active": "green", "canary": "yellow", "rolled back": "red", "retired": "dim"}
LIVE = ("canary", "active")

profiles_app = typer.Typer(help="Speed profiles of a farm; without a command, a list of them.")


@profiles_app.callback(invoke_without_command=True)
def list_profiles(context: typer.Context, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Speed profiles of a farm; without a command, a list of them."""
    if context.invoked_subcommand is not None:
        return
    farm = Farm(url, api_key)
    found = farm.profiles()
    told = {str(entry["name"]): _history(farm, str(entry["name"])) for entry in found}
    events = {name: cast("Sequence[Entry]", history["events"]) for name, history in told.items()}
    payload = [{**entry, "last_event": _last(entry, events[str(entry["name"])])} for entry in found]
    finish({"data": payload}, _table(payload) if found else "no profiles yet; `sakuga promote` adds one", as_json)


@profiles_app.command("show")
def show_profile(name: Name, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """All versions of a profile, and what happened to them."""
    history = _history(Farm(url, api_key), name)
    versions = cast("Sequence[Entry]", history["data"])
    events = cast("Sequence[Entry]", history["events"])
    table = _table([{**entry, "last_event": _last(entry, events)} for entry in versions])
    lines = "\n".join(f"version {event['version']} {_sentence(event)}" for event in events)
    finish(history, Group(table, Text(lines)), as_json)


@profiles_app.command("retire")
def retire_profile(
    name: Version, model: Model = None, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Offer a version no longer; the one that it replaced is offered again."""
    farm = Farm(url, api_key)
    _say(farm.ask("DELETE", f"/profiles/{chosen_version(farm, name, model, LIVE)['id']}"), as_json)


@profiles_app.command("activate")
def activate_profile(
    name: Version, model: Model = None, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Give a version to all requests, whatever its audits said."""
    farm = Farm(url, api_key)
    chosen = chosen_version(farm, name, model, ("canary", "active", "retired"))
    _say(farm.ask("POST", f"/profiles/{chosen['id']}/activate"), as_json)


def _say(entry: Entry, as_json: bool) -> None:
    finish(entry, plain(f"{entry['name']}@{entry['version']} of {entry['model']} is {_state(entry)}"), as_json)


def _history(farm: Farm, name: str) -> Mapping[str, object]:
    return farm.ask("GET", f"/profiles/{quote(name, safe='')}")


def chosen_version(farm: Farm, text: str, model: str | None, states: Sequence[str]) -> Entry:
    """The version that is named; else the newest in the first of these states that has one. Raises ProfileError."""
    name, _, number = text.partition("@")
    versions = cast("Sequence[Entry]", _history(farm, name)["data"])
    versions = [each for each in versions if each["id"] and model in (None, each["model"])]
    if len({each["model"] for each in versions}) > 1:
        raise ProfileError(f"profile {shown(name)} is there for several models; say which with --model")
    if number:
        versions = [each for each in versions if str(each["version"]) == number]
        states = ("canary", "active", "retired")
    found = next((each for state in states for each in versions if each["state"] == state), None)
    if found is None:
        raise ProfileError(f"there is no version of {shown(text)} to do this to; see `sakuga profiles show {name}`")
    return found


def _table(entries: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "version", "state", "size", "tier", "speedup", "figures", "audits", "last"):
        table.add_column(column, no_wrap=column != "last")
    for entry in entries:
        size, measured = cast("Entry | None", entry["size"]), cast("Mapping[str, float]", entry["measured"])
        audits, state = cast("Entry", entry["audits"]), _state(entry)
        share = f" {entry['canary_share']:.0%}" if state == "canary" else ""
        figures = [form.format(measured[name]) for name, form in FIGURES.items() if name in measured]
        table.add_row(
            plain(str(entry["name"])),
            "with the model" if entry["version"] is None else str(entry["version"]),
            Text(f"{state}{share}", STYLES[state]),
            f"{size['width']}x{size['height']}, {size['num_frames']} frames" if size else "any",
            str(entry["tier"] or "-"),
            f"{measured['speedup']:.1f}x" if "speedup" in measured else "-",
            ", ".join(figures) or "-",
            f"{audits['passed']} passed, {audits['failed']} failed",
            Text(_sentence(cast("Entry", entry["last_event"]))) if entry["last_event"] else "-",
        )
    return table


def _state(entry: Entry) -> str:
    return "rolled back" if entry["reason"] == "rolled_back" else str(entry["state"])


def _last(entry: Entry, events: Sequence[Entry]) -> Entry | None:
    return next((event for event in events if event["version"] == entry["version"]), None)


def _sentence(event: Entry) -> str:
    """What happened, when, and why.

    >>> _sentence({"type": "rolled_back", "at": time.time() - 130, "data": {"faults": ["ref_ssim is 0.8"]}})
    'rolled back 2 min ago: ref_ssim is 0.8'
    """
    data = cast("Entry", event["data"])
    words = f"{str(event['type']).replace('_', ' ')} {age_of(time.time() - float(str(event['at'])))} ago"
    if event["type"] == "audited":
        words += ", passed" if data.get("passed") else ", failed"
    faults = data.get("faults")
    return plain(f"{words}: {'; '.join(map(str, faults))}" if isinstance(faults, list) and faults else words)
