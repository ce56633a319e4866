"""The card beside the weights: hashes that the loader checks, and how each part was trained, from its run's log."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from sakuga.training.mini.dit import BASE_PRESETS, FAIRY_PRESETS
from sakuga.training.mini.vae import VAE_PRESETS

_PRESETS = {"vae": VAE_PRESETS, "base": BASE_PRESETS, "fairy": FAIRY_PRESETS}


def write_card(weights: Path, runs: Path, preset: str) -> dict:
    """Write `card.json` into the model folder and the loss curves into `curves/`; returns the card."""
    names = sorted(path for path in weights.rglob("*") if path.is_file() and path.suffix in (".safetensors", ".json"))
    hashed = {
        path.relative_to(weights).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in names
        if path.name != "card.json"
    }
    card = {
        "name": "wan-mini",
        "licence": "Apache-2.0",
        "preset": preset,
        "stage": "a start, trained on two CPU cores" if preset == "cpu" else "trained on one GPU",
        "data": "procedural dancers of sakuga.synth, seeds below 2^26; photographs of scikit-image but the astronaut",
        "training": {stage: _stage_facts(runs / stage, preset, stage) for stage in _PRESETS},
        "sha256": hashed,
    }
    (weights / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _stage_facts(run: Path, preset: str, stage: str) -> dict:
    """Steps, seconds, device and losses of a run; a run that was never made is said to be missing."""
    log = run / "log.jsonl"
    if not log.exists():
        return {"missing": f"no log in {run.name}"}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    tail = lines[-max(1, len(lines) // 20) :]
    return {
        "steps": lines[-1]["step"],
        "seconds": lines[-1]["seconds"],
        "device": torch.cuda.get_device_name() if preset == "gpu" and torch.cuda.is_available() else _processor(),
        "last_loss": round(sum(line["loss"] for line in tail) / len(tail), 5),
        "preset": asdict(_PRESETS[stage][preset]),
    }


def _processor() -> str:
    return f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"


def draw_curves(runs: Path, path: Path) -> None:
    """Loss against steps of every stage, one SVG: thin for each logged step, thick for the mean of ten."""
    width, height, gap = 320, 200, 20
    panels = []
    for index, stage in enumerate(_PRESETS):
        lines = [json.loads(line) for line in (runs / stage / "log.jsonl").read_text().splitlines()]
        steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
        mean = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
        top = sorted(losses)[int(0.98 * (len(losses) - 1))]
        x0 = index * (width + gap)

        def points(values: list[float], steps: list[int] = steps, x0: int = x0, top: float = top) -> str:
            return " ".join(
                f"{x0 + 40 + (width - 50) * step / steps[-1]:.1f},{170 - 140 * min(1.0, value / top):.1f}"
                for step, value in zip(steps, values, strict=True)
            )

        panels.append(
            f'<text x="{x0 + 40}" y="18" font-weight="bold">{stage}: loss, {steps[-1]} steps</text>'
            f'<text x="{x0 + 2}" y="34">{top:.2f}</text><text x="{x0 + 2}" y="174">0</text>'
            f'<path d="M{x0 + 40} 30V170H{x0 + width - 10}" fill="none" stroke="#888"/>'
            f'<polyline points="{points(losses)}" fill="none" stroke="#d9a7d8"/>'
            f'<polyline points="{points(mean)}" fill="none" stroke="#8a3fa0" stroke-width="2"/>'
        )
    total = len(_PRESETS) * (width + gap)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(panels)}</svg>\n'
    )
