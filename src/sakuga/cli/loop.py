"""`sakuga loop`: the whole circle on this machine, from nothing to a profile that the running farm serves and drops.

Each step is a command that is printed before it runs, and can be typed again: data, a LoRA, a sweep of how to render
it, the gate, the farm, a request with the new profile beside one without, a stricter gate and the rollback.

Run: pytest tests/ray/test_loop.py
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.markup import escape

from sakuga import settings
from sakuga.cli.output import AsJson, finish, stderr_console
from sakuga.errors import ClusterError, GateFailedError

NAME, PROFILE = "loop", "fairy-fast"
AUDIT_PATIENCE_S = 90.0
TRAINING = (
    *("--rank", "32", "--batch-size", "4", "--optimizer", "muon", "--lr", "1e-2", "--weight-decay", "0"),
    *("--ema-decay", "0.97", "--loss-weighting", "none", "--save-every", "1000", "--evaluate-every", "1000"),
    *("--validate", "0"),
)
"""As in `benchmarks/lora_cpu.py`, at half the rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything."""

    groups: int = 40
    """Dancers to learn from; one in ten is held out."""
    side_px: int = 128
    num_frames: int = 17
    train_minutes: float = 2.0
    train_steps: int = 400
    cases: int = 6
    reference_steps: int = 20
    space: Mapping[str, Sequence[object]] = field(
        default_factory=lambda: {
            "guidance_scale": [1.0, 1.5],
            "num_inference_steps": [6, 10],
            "step_cache": [None, "forecast:0.1"],
        }
    )
    requests: int = 3
    """With the profile, and as many without."""


QUICK = Scale(
    groups=10, side_px=64, num_frames=5, train_steps=2, cases=1, reference_steps=4, requests=1,
    space={"guidance_scale": [1.0], "num_inference_steps": [1, 2]},
)  # fmt: skip
"""For a test: every part runs, nothing is learnt."""


def loop(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for everything; run again, what is finished there is kept.")] = Path(
        "out/loop"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: see every part run, learn nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """From nothing to a faster profile in the running farm: data, LoRA, sweep, gate, canary, requests, rollback."""
    from sakuga.media import check_output_dir

    settings.set_for_libraries({"OMP_WAIT_POLICY": "passive"})  # lanes and executors share the cores
    result = run_loop(Shell(context), check_output_dir(out).resolve(), QUICK if quick else Scale())
    finish(result, _text(result, out), as_json)


def run_loop(do: Shell, out: Path, scale: Scale) -> dict[str, object]:
    """What was measured, with the seconds of each part. Raises what a step raised."""
    began = time.monotonic()
    seconds: dict[str, float] = {}
    with _part(seconds, "data"):
        sizes = ("--frames", str(scale.num_frames), "--width", str(scale.side_px), "--height", str(scale.side_px))
        do("synth", str(out / "data"), "--groups", str(scale.groups), *sizes)
        do("prepare", str(out / "data"), "--out", str(out / "prepared"), "--where", "world=fairy",
            "--num-frames", str(scale.num_frames))  # fmt: skip
    with _part(seconds, "train"):
        trained = do("train", "--data", str(out / "prepared"), "--out", str(out / "run"), "--steps",
                      str(scale.train_steps), "--max-minutes", str(scale.train_minutes), *TRAINING)  # fmt: skip
    gates = _write_files(out, scale)
    with _part(seconds, "sweep"):
        swept = do("sweep", str(out / "sweep.yaml"), "--out", str(out / "sweeps"))
    with _farm(out, seconds):
        with _part(seconds, "promote"):
            promoted = _promoted(do, out, gates[0])
        with _part(seconds, "requests"):
            asked = _requests(do, out, scale, promoted["entry"])
        with _part(seconds, "audit"):
            audits = _audits(do)
        with _part(seconds, "rollback"):
            rolled_back = do("recheck", PROFILE, "--gate", str(gates[1]), "--out", str(out / "sweeps"), may_end=1)
            listed = do("profiles")
    seconds["total"] = round(time.monotonic() - began, 1)
    verdict = {name: promoted["figures"][name] for name in ("speedup", "ref_ssim", "ref_psnr_db", "motion_ratio")}
    return {
        "seconds": seconds,
        "heldout_loss": trained["metrics"].get("heldout/loss"),
        "report": f"sweeps/{NAME}/report.html",
        "trials": {name: swept[name] for name in ("counts", "recommended", "best", "trials_per_minute")},
        "profile": {"trial": promoted["trial"], "refused_before": promoted["refused"], **verdict},
        **asked,
        "audits": audits,
        "rolled_back": {"faults": rolled_back["faults"], "profiles": [_brief(each) for each in listed["data"]]},
    }


def _brief(entry: Mapping) -> dict[str, object]:
    return {name: entry[name] for name in ("name", "version", "state", "reason")}


def _write_files(out: Path, scale: Scale) -> tuple[Path, Path]:
    """The sweep, its gate, and the gate made stricter."""
    base = {"width": scale.side_px, "height": scale.side_px, "num_frames": scale.num_frames,
            "loras": [{"path": str(out / "run" / "lora.safetensors"), "weight": 1.0}]}  # fmt: skip
    cases = {"synth": "fairy", "count": scale.cases}
    sweep = {
        "name": NAME, "kind": "inference", "base": base, "reference": {"num_inference_steps": scale.reference_steps},
        "space": dict(scale.space), "evaluation": cases, "objectives": ["ref_ssim", "seconds"],
    }  # fmt: skip
    gate = {
        "model": "wan-mini", **{name: base[name] for name in ("width", "height", "num_frames")}, "cases": cases,
        "reference": {"num_inference_steps": scale.reference_steps}, "canary_share": 1.0, "audit_share": 1.0,
    }  # fmt: skip
    bars = {"ref_ssim": {"min": 0.9}, "motion_ratio": {"min": 0.7}, "flicker_ratio": {"max": 2.0}}
    if scale == QUICK:
        bars = {"ref_psnr_db": {"min": 1}}
    files = {
        "sweep.yaml": sweep,
        "gate.yaml": gate | {"bars": bars},
        "gate-strict.yaml": gate | {"bars": bars | {"ref_ssim": {"min": 0.9999}}},
    }
    for name, content in files.items():
        (out / name).write_text(yaml.safe_dump(content, sort_keys=False))
    return out / "gate.yaml", out / "gate-strict.yaml"


def _promoted(do: Shell, out: Path, gate: Path) -> dict:
    """The fastest trial that the gate lets through; those that it refused cost no render."""
    from sakuga.tuning.pareto import front
    from sakuga.tuning.trials import SweepFolder

    folder = SweepFolder(out / "sweeps" / NAME)
    objectives = folder.sweep().objectives
    refused = []
    for result in sorted(front(folder.results(), objectives), key=lambda each: each.figures["seconds"]):
        words = ("promote", f"{NAME}/{result.id}", "--as", PROFILE, "--gate", str(gate), "--out", str(out / "sweeps"))
        try:
            return do(*words) | {"refused": refused}
        except GateFailedError as error:
            stderr_console.print(f"  [yellow]{escape(error.message)}[/yellow]", soft_wrap=True)
            refused.append(result.id)
    raise GateFailedError(f"no trial of the front holds {gate}; look at {folder.report}")


def _requests(do: Shell, out: Path, scale: Scale, entry: Mapping) -> dict[str, object]:
    """The same dancers by the profile and by the reference; seconds as the farm's receipts have them."""
    from sakuga.tuning.cases import INDEX

    cases = json.loads((out / "sweeps" / NAME / "cases" / INDEX).read_text(encoding="utf-8"))["cases"]
    ways = {"reference": _as_reference(entry), "profile": ("--profile", PROFILE)}
    took: dict[str, list[float]] = {kind: [] for kind in ways}
    for number, case in enumerate(cases[: scale.requests]):
        fields = case["fields"]
        for kind, words in ways.items():
            job = do("submit", fields["prompt"], "--image", fields["input_image"], "--set", f"seed={fields['seed']}",
                      *words, "--watch", "--out", str(out / f"{kind}-{number}.mp4"))  # fmt: skip
            receipt = out / f"{kind}-{number}.json"
            do("download", job["id"], "--variant", "receipt", "--out", str(receipt))
            took[kind].append(json.loads(receipt.read_text(encoding="utf-8"))["seconds"]["total"])
    mean = {kind: sum(values) / len(values) for kind, values in took.items()}
    return {
        "request_seconds": {kind: round(value, 3) for kind, value in mean.items()},
        "request_speedup": round(mean["reference"] / mean["profile"], 2),
    }


def _as_reference(entry: Mapping) -> tuple[str, ...]:
    """Options of `submit` for the render that the profile is held to."""
    size, reference = entry["size"], entry["reference"]
    words = ["--size", f"{size['width']}x{size['height']}", "--set", f"num_frames={size['num_frames']}"]
    words += [f"--lora={lora['name']}:{lora['weight']}" for lora in reference.get("loras", ())]
    plain = [name for name in reference if name != "loras"]
    return (*words, *(word for name in plain for word in ("--set", f"{name}={reference[name]}")))


def _audits(do: Shell) -> Mapping[str, object]:
    """What the farm found when it rendered the profile's videos again; it does when its lanes are idle."""
    deadline = time.monotonic() + AUDIT_PATIENCE_S
    while True:
        (entry,) = [each for each in do("profiles", shown=False)["data"] if each["name"] == PROFILE]
        if entry["audits"]["passed"] + entry["audits"]["failed"] > 0 or time.monotonic() > deadline:
            return entry["audits"]
        time.sleep(1.0)


@contextlib.contextmanager
def _farm(out: Path, seconds: dict[str, float]) -> Iterator[None]:
    """A farm of one lane in this process; commands inside find it by the environment."""
    from sakuga.farm.local_farm import KEY_FILE, LocalFarm

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, began = out / "farm", time.monotonic()
    _show("sakuga", "serve", "--data", str(data), "--port", str(port))
    with LocalFarm.start({"pools": [{"model": "wan-mini"}]}, data, port=port, dashboard=False) as farm:
        seconds["serve"] = round(time.monotonic() - began, 1)
        _say(f"export SAKUGA_URL={farm.url} SAKUGA_API_KEY=$(cat {shlex.quote(str(data / KEY_FILE))})")
        with settings.for_a_while(SAKUGA_URL=farm.url, SAKUGA_API_KEY=farm.api_key):
            yield


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands of ours as if they had been typed."""

    context: typer.Context

    def __call__(self, *words: str, may_end: int = 0, shown: bool = True) -> dict:
        """The command's JSON. Raises what it raised; ClusterError for another exit code than 0 and `may_end`."""
        if shown:
            _show("sakuga", *words)
        root, said, told, code = self.context.find_root().command, io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            try:
                with root.make_context("sakuga", [*words, "--json"]) as context:
                    root.invoke(context)
            except typer.Exit as done:
                code = done.exit_code
        if code not in (0, may_end):
            last = (told.getvalue().strip().splitlines() or ["nothing said"])[-1]
            raise ClusterError(f"`sakuga {words[0]}` ended with {code} ({last}); run the same command again to go on")
        return json.loads(said.getvalue().strip().splitlines()[-1])


def _show(*words: str) -> None:
    _say(shlex.join(words))


def _say(line: str) -> None:
    stderr_console.print("[bold]$[/bold]", escape(line), soft_wrap=True)


@contextlib.contextmanager
def _part(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - began, 1)


def _text(result: Mapping, out: Path) -> str:
    profile, seconds = result["profile"], result["seconds"]
    audits = result["audits"]
    return "\n".join(
        [
            "",
            f"[bold]{PROFILE}[/bold]: trial {profile['trial']}, {profile['speedup']:.2f} times as fast as "
            f"the reference in the gate, SSIM {profile['ref_ssim']:.3f} to it",
            f"  requests     {result['request_seconds']['profile']:.2f} s with it, "
            f"{result['request_seconds']['reference']:.2f} s without: {result['request_speedup']:.2f} times as fast",
            f"  audits       {audits['passed']} passed, {audits['failed']} failed",
            f"  rolled back  {'; '.join(result['rolled_back']['faults'])}",
            f"  report       {out / result['report']}",
            f"  videos       {out}",
            f"  seconds      {', '.join(f'{name} {value:.0f}' for name, value in seconds.items())}",
        ]
    )
