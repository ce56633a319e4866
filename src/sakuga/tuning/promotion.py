"""From a trial to a profile: what of it is a choice of speed, what it is held to, and whether the gate lets it pass.

Run: pytest tests/unit/test_tuning_gate.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from sakuga.engine.resolve import located
from sakuga.errors import ProfileError, shown
from sakuga.media import write_json_atomic, write_mp4
from sakuga.recipe.request import LoraRequest, parse_request
from sakuga.tuning.gate import Gate, Verdict, judge
from sakuga.tuning.pareto import recommended
from sakuga.tuning.profiles import PROFILE_FIELDS, SpeedProfile
from sakuga.tuning.renders import RenderStore
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.trials import DONE, FAILED, REFUSED, STOPPED, SweepFolder, TrialResult
from sakuga.wan.catalogue import card
from sakuga.wan.lora import embedded_lora
from sakuga.wan.passport import read_passport
from sakuga.wan.weights import file_sha256

BEST = "best"
ENDED = {FAILED: "failed", REFUSED: "was refused", STOPPED: "was stopped"}
SIZES = ("width", "height", "num_frames")


def chosen_trial(folder: SweepFolder, trial_id: str) -> TrialResult:
    """The trial that is to be promoted, by its id, the beginning of it, or `best`: what the report recommends.

    Raises ProfileError for one that is not there or did not end well.
    """
    if trial_id == BEST and (chosen := recommended(folder.results(), folder.sweep().objectives)) is not None:
        return chosen
    known = {result.id: result for result in folder.results()}
    if trial_id not in known:
        begun = [name for name in known if name.startswith(trial_id)]
        if len(begun) != 1:
            there = ", ".join(list(known)[:8]) or "none has ended"
            raise ProfileError(f"{folder.path.name} has no trial {shown(trial_id)}; there are {there}")
        trial_id = begun[0]
    result = known[trial_id]
    if result.state != DONE:
        because = f" ({result.reason})" if result.reason else ""
        raise ProfileError(
            f"trial {trial_id} {ENDED[result.state]}{because}; only a trial that is done can be promoted"
        )
    return result


def check_for(sweep: Sweep, result: TrialResult, gate: Gate) -> None:
    """Raises ProfileError for a gate of another model or size than the trial's."""
    if gate.model != sweep.model:
        raise ProfileError(
            f"the gate is for {gate.model} and the sweep was of {sweep.model}; take a gate for that model"
        )
    found = card(sweep.model)
    fields = {**(sweep.base if sweep.kind == "inference" else sweep.render), **result.fields}
    size = tuple(fields.get(name) or getattr(found, name) for name in SIZES)
    if size != gate.size:
        own, asked = ("{}x{} with {} frames".format(*each) for each in (size, gate.size))
        raise ProfileError(f"the trial rendered {own} and the gate asks for {asked}; take a gate of that size")


def candidate_fields(result: TrialResult) -> dict[str, object]:
    """What of a trial's fields a profile chooses."""
    return {name: value for name, value in result.fields.items() if name in PROFILE_FIELDS}


def candidate_sha256(sweep: Sweep, result: TrialResult) -> str:
    """Of what a trial chooses, with its LoRAs by content: the same trial of the same sweep on any machine."""
    fields = candidate_fields(result)
    loras = [
        [file_sha256(lora_path(lora, sweep.model, sweep.weights)), lora.weight, lora.expert]
        for lora in loras_of(fields)
    ]
    about = {"model": sweep.model, "fields": {**fields, "loras": loras}}
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def reference_of(gate: Gate, fields: Mapping[str, object], weights: str | None) -> dict[str, object]:
    """The reference's fields: the gate's, with the candidate's LoRAs but those that were made for few steps."""
    if "loras" in gate.reference or not fields.get("loras"):
        return dict(gate.reference)
    kept = [
        lora.model_dump(exclude_none=True)
        for lora in loras_of(fields)
        if not read_passport(lora_path(lora, gate.model, weights)).is_acceleration
    ]
    return {**gate.reference, **({"loras": kept} if kept else {})}


def gate_folder(folder: SweepFolder, gate: Gate) -> Path:
    """Where a sweep keeps the cases and verdicts of a gate."""
    return folder.path / "gates" / gate.cases_sha256[:12]


def pass_gate(
    folder: SweepFolder, result: TrialResult, gate: Gate, *, device: str, subjective: Mapping[str, float] | None = None
) -> Verdict:
    """The verdict, kept beside the gate's cases; its renders are the sweep's own wherever they are the same."""
    sweep = folder.sweep()
    check_for(sweep, result, gate)
    fields = candidate_fields(result)
    verdict = judge(
        gate, fields, reference_of(gate, fields, sweep.weights), folder=gate_folder(folder, gate),
        store=RenderStore(folder.renders), weights=sweep.weights, device=device, subjective=subjective,
    )  # fmt: skip
    write_json_atomic(gate_folder(folder, gate) / f"{result.id}.json", verdict.as_dict())
    if any(bar.figure == "weighted_total" for bar in gate.limits):
        _write_pairs(folder, gate, result, verdict)
    return verdict


def rating_folder(folder: SweepFolder, gate: Gate) -> Path:
    """Where `sakuga rate` finds a gate's renders: one folder for the reference, one for each trial."""
    return gate_folder(folder, gate) / "rate"


def _write_pairs(folder: SweepFolder, gate: Gate, result: TrialResult, verdict: Verdict) -> None:
    store, out = RenderStore(folder.renders), rating_folder(folder, gate)
    for row in verdict.rows:
        for variant, key in (("reference", row.reference_key), (result.id, row.render_key)):
            path, made = out / variant / f"{row.name}.mp4", store.find(str(key))
            if made is not None and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_mp4(path, made.frames_THWC, card(gate.model).fps)


def profile_of(
    name: str,
    folder: SweepFolder,
    result: TrialResult,
    gate: Gate,
    verdict: Verdict,
    *,
    plan: str,
    gate_name: str,
    lora_names: Mapping[str, str],
) -> SpeedProfile:
    """The profile as the farm is to know it; `lora_names` are the farm's names of LoRA files, by path."""
    sweep, fields = folder.sweep(), candidate_fields(result)
    reference = reference_of(gate, fields, sweep.weights)
    width, height, num_frames = gate.size
    measured = {key: value for key, value in verdict.figures.items() if value == value}
    return SpeedProfile(
        name=name, model=gate.model, width=width, height=height, num_frames=num_frames,
        fields=_renamed(fields, lora_names), reference=_renamed(reference, lora_names), bars=gate.limits,
        measured=measured, tier=gate.tier, plan=plan, canary_share=gate.canary_share, audit_share=gate.audit_share,
        source={"sweep": sweep.name, "trial": result.id, "gate": gate_name,
                "candidate_sha256": candidate_sha256(sweep, result)},
    )  # fmt: skip


def loras_of(fields: Mapping[str, object]) -> tuple[LoraRequest, ...]:
    return parse_request({"prompt": "a dancer", "loras": fields.get("loras") or []}).loras


def lora_path(lora: LoraRequest, model: str, weights: str | None) -> Path:
    """Where a LoRA of a trial's fields is on this machine. Raises LoraError."""
    if lora.path is not None:
        return Path(lora.path)
    found = card(model)
    return embedded_lora(str(lora.name), found.name, located(found, weights).lora_dir, found.loras)


def _renamed(fields: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """The fields with the farm's names of LoRAs in place of paths."""
    if not fields.get("loras"):
        return dict(fields)
    loras = [
        {"name": names[lora.path] if lora.path is not None else lora.name, "weight": lora.weight}
        | ({} if lora.expert is None else {"expert": lora.expert})
        for lora in loras_of(fields)
    ]
    return {**fields, "loras": loras}
