"""`sakuga promote`: a trial through the gate and into the running farm; `sakuga recheck`: a promoted one once more.

The farm is asked first, so that nothing is rendered in vain; the gate's renders are kept, so that the same command
takes seconds when the farm was away.     Run: pytest tests/unit/test_cli_promote.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sakuga import settings
from sakuga.cli import options
from sakuga.cli.client import ApiKey, Farm, Url
from sakuga.cli.output import AsJson, finish, stderr_console
from sakuga.cli.profiles import LIVE, Model, Version, chosen_version
from sakuga.errors import GateError, GateFailedError, InputError, ProfileError, shown

if TYPE_CHECKING:
    from sakuga.tuning.gate import Gate, Verdict
    from sakuga.tuning.trials import SweepFolder, TrialResult

SWEEPS = Path("out/sweeps")
GATES = Path("gates")

Root = Annotated[Path, typer.Option("--out", help="Folder that the sweeps are in.")]
GateFile = Annotated[Path | None, typer.Option("--gate", help="Gate file; gates/MODEL.yaml if not given.")]
Ratings = Annotated[
    Path | None, typer.Option(help="ratings.jsonl of `sakuga rate`, for a gate with a bar on the weighted total.")
]


def promote(
    trial: Annotated[
        str, typer.Argument(help="SWEEP/TRIAL, or SWEEP/best for what its report recommends.", show_default=False)
    ],
    as_: Annotated[str, typer.Option("--as", help="Name of the profile, for requests.", show_default=False)],
    gate: GateFile = None,
    out: Root = SWEEPS,
    ratings: Ratings = None,
    device: options.Device = "cpu",
    num_threads: options.NumThreads = None,
    url: Url = None,
    api_key: ApiKey = None,
    gate_only: Annotated[bool, typer.Option("--gate-only", help="Judge, and tell no farm.")] = False,
    as_json: AsJson = False,
) -> None:
    """Render the gate's cases with a trial's settings and, if every bar holds, offer them to requests by name."""
    from sakuga.recipe.limits import check_slug
    from sakuga.tuning.audit import audited_bars
    from sakuga.tuning.promotion import candidate_fields, check_for, profile_of

    name = check_slug("--as", as_)
    folder, result = _trial(out, trial)
    chosen, gate_path = _gate(gate, folder)
    check_for(folder.sweep(), result, chosen)
    farm = None if gate_only else Farm(url, api_key)
    if farm is not None:
        if not audited_bars(chosen.limits):
            raise GateError(f"{shown(gate_path)} has no bar that the farm's audits can measure; add one on ref_ssim")
        farm.profiles()  # before minutes of rendering
    verdict = _judged(folder, result, chosen, device, ratings, num_threads)
    if not verdict.passed:
        raise GateFailedError(_refusal(name, result, verdict, folder, chosen))
    payload: dict[str, object] = {"profile": name, "trial": result.id, "gate": str(gate_path), **verdict.as_dict()}
    told = f"[bold]{escape(name)}[/bold] passed {escape(str(gate_path))}"
    if farm is not None:
        lora_names = _uploaded(farm, name, chosen.model, candidate_fields(result))
        profile = profile_of(
            name, folder, result, chosen, verdict,
            plan=_plan(verdict, folder), gate_name=str(gate_path), lora_names=lora_names,
        )  # fmt: skip
        entry = farm.promote(profile)
        payload["entry"] = entry
        share = entry.get("canary_share") if entry.get("state") == "canary" else None
        to = "" if not isinstance(share, float) else f", tried on {share:.0%} of the requests that name it"
        told = f"{told} and is version {entry.get('version')} at {escape(farm.url)} ({entry.get('state')}{to})"
    finish(payload, Group(_table(chosen, verdict), Text.from_markup(told)), as_json)


def recheck(
    name: Version,
    model: Model = None,
    gate: GateFile = None,
    out: Root = SWEEPS,
    ratings: Ratings = None,
    device: options.Device = "cpu",
    num_threads: options.NumThreads = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Judge a promoted profile by another gate, or by the same one made stricter; below the bars it is rolled back."""
    from sakuga.tuning.promotion import candidate_sha256

    farm = Farm(url, api_key)
    entry = chosen_version(farm, name, model, LIVE)
    name, source = str(entry["name"]), entry.get("source")
    if not isinstance(source, dict) or not {"sweep", "trial", "candidate_sha256"} <= set(source):
        raise ProfileError(f"profile {shown(name)} does not say of which sweep it is; promote it again")
    folder, result = _trial(out, f"{source['sweep']}/{source['trial']}")
    if candidate_sha256(folder.sweep(), result) != source["candidate_sha256"]:
        raise ProfileError(
            f"{shown(folder.path)} holds another trial {result.id} than the one that {shown(name)} was made of; name "
            "the folder of its sweep with --out"
        )
    chosen, gate_path = _gate(gate, folder)
    verdict = _judged(folder, result, chosen, device, ratings, num_threads)
    payload: dict[str, object] = {
        "profile": name,
        "version": entry.get("version"),
        "gate": str(gate_path),
        **verdict.as_dict(),
    }
    if verdict.passed:
        text = f"[bold]{escape(name)}[/bold] version {entry.get('version')} holds {escape(str(gate_path))}"
        finish(payload, Group(_table(chosen, verdict), Text.from_markup(text)), as_json)
        return
    why = {"faults": list(verdict.faults), "figures": dict(verdict.figures), "gate": str(gate_path)}
    payload["entry"] = farm.roll_back(str(entry["id"]), why)
    text = (f"[bold]{escape(name)}[/bold] version {entry.get('version')} was [red]rolled back[/red] at "
            f"{escape(farm.url)}: {escape('; '.join(verdict.faults))}")  # fmt: skip
    finish(payload, Group(_table(chosen, verdict), Text.from_markup(text)), as_json, exit_code=1)


def _trial(out: Path, trial: str) -> "tuple[SweepFolder, TrialResult]":
    from sakuga.tuning.promotion import chosen_trial
    from sakuga.tuning.trials import SweepFolder

    sweep, slash, name = trial.partition("/")
    if not slash or not sweep or not name or "/" in name or sweep in (".", ".."):
        raise InputError(f"{shown(trial)} is no trial; write SWEEP/TRIAL, as `sakuga sweep show SWEEP` lists them")
    folder = SweepFolder(out / sweep)
    folder.sweep()
    return folder, chosen_trial(folder, name)


def _gate(path: Path | None, folder: "SweepFolder") -> "tuple[Gate, Path]":
    from sakuga.tuning.gate import read_gate

    given = path or GATES / f"{folder.sweep().model}.yaml"
    if path is None and not given.is_file():
        raise GateError(f"there is no gate file {shown(given)}; write one, or name another with --gate")
    return read_gate(given), given


def _judged(
    folder: "SweepFolder",
    result: "TrialResult",
    gate: "Gate",
    device: str,
    ratings: Path | None,
    num_threads: int | None,
) -> "Verdict":
    """With as many threads as an executor of the sweep had: seconds compare, and its renders are the gate's."""
    import torch

    from sakuga.farm.lock import folder_lock
    from sakuga.tuning.promotion import gate_folder, pass_gate

    executors, given = folder.sweep().executors, num_threads or settings.from_environment().num_threads
    torch.set_num_threads(given or executors.threads or max(1, settings.usable_cores() // executors.count))
    subjective = None if ratings is None else _subjective(ratings, result.id)
    place = gate_folder(folder, gate)
    place.mkdir(parents=True, exist_ok=True)
    with folder_lock(place), stderr_console.status("the gate's cases"):
        return pass_gate(folder, result, gate, device=device, subjective=subjective)


def _subjective(path: Path, variant: str) -> Mapping[str, float]:
    """What raters gave the trial's videos, 0 to 20, by case. Raises InputError."""
    from sakuga.quality.ratings import read_ratings, subjective_by_stem

    if not path.is_file():
        raise InputError(f"{shown(path)} does not exist; `sakuga rate FOLDER` writes FOLDER/ratings.jsonl")
    return subjective_by_stem(read_ratings(path), variant)


def _refusal(name: str, result: "TrialResult", verdict: "Verdict", folder: "SweepFolder", gate: "Gate") -> str:
    from sakuga.tuning.promotion import rating_folder

    where = ", ".join(f"{frame.case} frame {frame.frame} (SSIM {frame.ssim:.3f})" for frame in verdict.worst)
    look = f"; worst at {where}; look at {verdict.sheet}" if where else ""
    rate = ""
    if any(fault.startswith("weighted_total was not") for fault in verdict.faults):
        rate = f"; rate the pairs with `sakuga rate {rating_folder(folder, gate)}` and give --ratings"
    return f"{shown(name)} is not promoted, trial {result.id} fails the gate: {'; '.join(verdict.faults)}{look}{rate}"


def _table(gate: "Gate", verdict: "Verdict") -> Table:
    from sakuga.tuning.figures import bars_as_dict

    drawn = Table("figure", "bar", "measured", "", box=None, pad_edge=False)
    for bar in gate.limits:
        limits = bars_as_dict([bar])[bar.figure]
        words = " and ".join(
            f"{'at least' if side == 'min' else 'at most'} {value:g}" for side, value in limits.items()
        )
        value = verdict.figures.get(bar.figure)
        held = bar.fault(verdict.figures) is None
        drawn.add_row(
            bar.figure,
            words,
            "–" if value is None else f"{value:.4g}",
            "[green]holds[/green]" if held else "[red]fails[/red]",
        )
    for name in ("seconds", "reference_seconds", "speedup"):
        if name in verdict.figures:
            drawn.add_row(name, "", f"{verdict.figures[name]:.3g}", "")
    return drawn


def _plan(verdict: "Verdict", folder: "SweepFolder") -> str:
    """Of the engine that measured, as its receipts say it."""
    from sakuga.tuning.renders import RenderStore

    made = RenderStore(folder.renders).find(str(verdict.rows[0].render_key))
    return "" if made is None else str(made.receipt.get("plan", ""))


def _uploaded(farm: Farm, name: str, model: str, fields: dict[str, object]) -> dict[str, str]:
    """The farm's names of the LoRA files, by path; the same file again is the same LoRA."""
    from sakuga.tuning.promotion import loras_of

    paths = [str(lora.path) for lora in loras_of(fields) if lora.path is not None]
    return {
        path: farm.upload_lora(Path(path), name if len(paths) == 1 else f"{name}-{number}", model)
        for number, path in enumerate(paths, start=1)
    }
