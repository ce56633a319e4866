"""The card beside the weights: hashes that the loader checks, and how each part was trained, from its run's log."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

STAGES = ("vae", "base", "decoder", "fairy")
OPTIONAL = ("decoder",)
"""Stages without which the model is whole."""


def write_card(weights: Path, run_folders: dict[str, Path]) -> dict:
    """Write `card.json` into the model folder; `run_folders` says where each of `STAGES` was trained.

    LoRAs of other origin that lie there, the distilled ones, keep what the card says of them.
    """
    hashed = {
        path.relative_to(weights).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(weights.rglob("*"))
        if path.suffix in (".safetensors", ".json") and path.name != "card.json"
    }
    path = weights / "card.json"
    known = json.loads(path.read_text())["training"] if path.exists() else {}
    loras = {name: known[name] for name in known if name not in STAGES and f"loras/{name}.safetensors" in hashed}
    card = {
        "name": "wan-mini",
        "licence": "Apache-2.0",
        "data": "procedural dancers of sakuga.synth, seeds below 2^26; photographs of scikit-image but the astronaut",
        "quality": "docs/wan-mini.md, from benchmarks/results/mini_quality.json",
        "training": {
            stage: _stage_facts(run_folders[stage])
            for stage in STAGES
            if stage not in OPTIONAL or (run_folders[stage] / "log.jsonl").exists()
        }
        | loras,
        "sha256": hashed,
    }
    path.write_text(json.dumps(card, indent=2) + "\n")
    return card


def _stage_facts(run: Path) -> dict:
    """Device, settings, steps, seconds, mean loss of the last twentieth; a run without a log is said to be missing."""
    if not (run / "log.jsonl").exists():
        return {"missing": f"no log in {run.name}"}
    lines = _log(run)
    tail = lines[-max(1, len(lines) // 20) :]
    figures = {
        "steps": lines[-1]["step"],
        "seconds": lines[-1]["seconds"],
        "last_loss": round(sum(line["loss"] for line in tail) / len(tail), 5),
    }
    return figures | json.loads((run / "run.json").read_text())


def _log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def draw_curves(run_folders: dict[str, Path], path: Path) -> None:
    """Loss against steps of every stage, one SVG: thin for each logged step, thick for the mean of ten."""
    width, height, gap = 320, 200, 20
    panels = []
    drawn = [stage for stage in STAGES if (run_folders[stage] / "log.jsonl").exists()]
    for index, stage in enumerate(drawn):
        lines = _log(run_folders[stage])
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
    total = len(drawn) * (width + gap)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(panels)}</svg>\n'
    )
