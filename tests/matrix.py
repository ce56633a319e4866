"""Rows that cover every pair of the engine's features, and how one is held to the plain render on one process.

    python tests/matrix.py --write                   # all rows (some minutes), then src/sakuga/engine/verified.json
    python tests/matrix.py --device cuda --write     # on one GPU: rows of one process; adds the GPU's pairs

A row names a family, a plan, a step cache, LoRAs, a precision, tiles, a memory plan and a step to resume at. The
reference is the same recipe on one process with everything resident and LoRAs fused where they can be. Compiled blocks
are left out: on a CPU each row would take a minute, and what a GPU's generated kernels do it would not tell.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch
from covertable import make

import families
import rank_work
import tiny_wan
from ranks import Ranks
from sakuga.engine import LocalEngine, RenderInputs
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.verified import TABLE, Features, features, pairs_of, plan_name
from sakuga.parallel import ParallelPlan
from sakuga.quality import psnr
from sakuga.recipe import LoraRef, RenderRecipe, StepCache, Tiling
from sakuga.wan.loading import LoadedModel
from sakuga.wan.memory import MemoryPlan
from sakuga.wan.precision import PRECISIONS, quantization
from sakuga.wan.weights import file_sha256
from small_lora import lora_for

MAX_LATENT_ERROR = 1e-4
"""In fp32, between any two ways: DESIGN's."""
MIN_PSNR_DB = 40.0
"""In bf16, where sums in another order differ by more; quantized weights are compared with themselves."""

PLANS = {
    plan_name(plan): plan
    for plan in (
        ParallelPlan(),
        ParallelPlan(cfg=2),
        ParallelPlan(ulysses=2),
        ParallelPlan(ring=2),
        ParallelPlan(cfg=2, ulysses=2),
        ParallelPlan(cfg=2, ring=2),
        ParallelPlan(ulysses=2, ring=2),
    )
}
AXES: dict[str, list[str]] = {
    "family": [*families.MODELS, *families.MORE_MODELS],
    "plan": [*PLANS],
    "cache": ["none", "teacache", "forecast"],
    "loras": ["none", "fused", "hot"],
    "precision": ["fp32", "bf16", "int8", "int8-dynamic", "fp8"],
    "tiling": ["no", "yes"],
    "memory": ["resident", "components", "layers", "disk"],
    "resume_at": ["never", "2", "4"],
}
MEMORY = {"layers": "layers:300KB"}
"""Less than one of the two blocks of a tiny model."""


def is_possible(row: dict[str, str]) -> bool:
    """What the engine does another way is no row: nothing can be fused into quantized weights."""
    return row.get("loras") != "fused" or PRECISIONS[row.get("precision", "fp32")].method is None


GPU_AXES = {"plan": ["single"], "precision": [*AXES["precision"], "fp8-dynamic"]}
"""What differs on one GPU; ranks there would need several."""


@cache
def rows(device: str = "cpu") -> tuple[dict[str, str], ...]:
    """Every possible pair of values stands in one of them at least; the same rows in the same order every time."""
    axes = AXES | (GPU_AXES if device == "cuda" else {})
    found = [{axis: row[axis] for axis in axes} for row in make(axes, strength=2)]
    found = [row if is_possible(row) else row | {"loras": "hot"} for row in found]
    covered = {pair for row in found for pair in _pairs(row)}
    for one, other in combinations(axes, 2):  # what the change of a row has lost
        for values in product(axes[one], axes[other]):
            pair = {one: values[0], other: values[1]}
            varied = {axis: choices[len(found) % len(choices)] for axis, choices in axes.items()}
            row = next(filter(is_possible, (varied | change | pair for change in ({}, {"precision": "bf16"}))), None)
            if tuple(pair.items()) not in covered and row is not None:
                found.append(row)
                covered |= set(_pairs(row))
    return tuple(found)


def _pairs(row: dict[str, str]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    return list(combinations(row.items(), 2))


def model_of(row: dict[str, str], tokenizer_dir: str, device: str = "cpu") -> LoadedModel:
    """A tiny model in the row's precision; its card has TeaCache coefficients, whichever family it is."""
    model = getattr(tiny_wan, f"tiny_{row['family']}")(tokenizer_dir)
    precision = PRECISIONS[row["precision"]]
    model.pipe.to(dtype=precision.dtype, device=device if row["memory"] == "resident" else "cpu")
    model.pipe.torch_dtype, model.pipe.device = precision.dtype, torch.device(device)
    for name in ("dit", "dit2", "vace"):
        config = quantization(precision, model.card.kept_layers)
        if config is not None and getattr(model.pipe, name) is not None:
            config.quantize_model(getattr(model.pipe, name))
    card = replace(model.card, teacache_id="Wan2.1-T2V-1.3B")
    memory = MemoryPlan.parse(MEMORY.get(row["memory"], row["memory"]))
    return replace(model, card=card, precision=row["precision"], memory=memory)


def execution_of(row: dict[str, str]) -> ExecutionPlan:
    return ExecutionPlan(
        parallel=PLANS[row["plan"]],
        memory=MemoryPlan.parse(MEMORY.get(row["memory"], row["memory"])),
        hot_loras=row["loras"] == "hot",
        allow_unverified=True,
    )


def recipe_of(row: dict[str, str], folder: Path, tokenizer_dir: str) -> tuple[RenderRecipe, RenderInputs]:
    fields: dict = {"precision": row["precision"], "num_inference_steps": 6}
    if row["cache"] != "none":
        fields["step_cache"] = StepCache(kind=row["cache"], threshold_rel_l1=5.0)  # skips whenever a rule may skip
    if row["tiling"] == "yes":
        fields["tiling"] = Tiling(tile_height=4, tile_width=4, stride_height=2, stride_width=3)
    recipe, inputs = families.task(row["family"], **fields)
    if row["loras"] == "none":
        return recipe, inputs
    path = folder / f"{row['family']}.safetensors"
    if not path.exists():
        lora_for(getattr(tiny_wan, f"tiny_{row['family']}")(tokenizer_dir).pipe.dit, path)
    loras = (LoraRef(sha256=file_sha256(path), weight=0.5),)
    return replace(recipe, loras=loras), replace(inputs, lora_paths=(path,))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a row is from its reference."""

    row: dict[str, str]
    features: Features
    latent_error: float
    psnr_db: float
    same_on_all_ranks: bool

    @property
    def passed(self) -> bool:
        exact = self.row["precision"] != "fp32" or self.latent_error <= MAX_LATENT_ERROR
        return exact and self.psnr_db >= MIN_PSNR_DB and self.same_on_all_ranks


def run_row(row: dict[str, str], world, folder: Path, tokenizer_dir: str, device: str = "cpu") -> Outcome:
    """`world` gives the processes of a world size; a plan of one process runs here."""
    recipe, inputs = recipe_of(row, folder, tokenizer_dir)
    plain = row | {"plan": "single", "memory": "resident"}
    if row["loras"] == "hot" and not PRECISIONS[row["precision"]].method:
        plain |= {"loras": "fused"}
    expected, expected_frames = render(plain, recipe, inputs, folder, tokenizer_dir, None, device=device)
    resume_at = None if row["resume_at"] == "never" else int(row["resume_at"])
    num_ranks = PLANS[row["plan"]].world_size
    if num_ranks == 1:
        answers = [render(row, recipe, inputs, folder, tokenizer_dir, resume_at, device=device)]
    else:
        answers = world(num_ranks).run(rank_work.render_row, row, recipe, inputs, str(folder), tokenizer_dir, resume_at)
    latents, frames = answers[0]
    model = model_of(plain, tokenizer_dir)
    return Outcome(
        row=row,
        features=features(recipe, model.card, execution_of(row)),
        latent_error=float((latents - expected).abs().max()),
        psnr_db=psnr(expected_frames, frames).pooled_db,
        same_on_all_ranks=all(torch.equal(other, latents) for other, _ in answers),
    )


def render(
    row: dict[str, str],
    recipe,
    inputs,
    folder: Path,
    tokenizer_dir: str,
    resume_at: int | None,
    mesh=None,
    device: str = "cpu",
) -> tuple[torch.Tensor, np.ndarray]:
    """Latents and frames of a row on this process, or on this rank of a mesh."""
    from sakuga.engine.ranks import RankEngine

    def engine() -> LocalEngine:
        model = model_of(row, tokenizer_dir, device)
        return LocalEngine(model, execution_of(row)) if mesh is None else RankEngine(model, mesh, execution_of(row))

    used = engine()
    state = used.start(recipe, inputs)
    while not state.is_done:
        if state.step == resume_at:
            path = folder / "state.safetensors"
            used.snapshot(state, path)
            used = engine()  # as another process would
            used.add_loras(inputs.lora_paths)
            state = used.restore(path, recipe)
        state = used.step(state)
    return state.latents_BCTHW.cpu(), used.finish(state).frames_THWC


def table_of(outcomes: list[Outcome], device: str = "cpu") -> dict[str, object]:
    """What `verified.json` holds: pairs of rows that passed and of none that failed, beside the other device's."""
    known = json.loads(TABLE.read_text())
    by_result = {True: set(), False: set()}
    for outcome in outcomes:
        by_result[outcome.passed] |= pairs_of(outcome.features)
    passed = sorted(by_result[True] - by_result[False])
    made = {"by": f"python tests/matrix.py --device {device} --write", "on": date.today().isoformat()}
    return {
        "made": known.get("made", {}) | {device: made | {"rows": len(outcomes)}},
        "pairs": known["pairs"] | {device: passed},
    }


def main() -> None:
    from sakuga.wan.mini.tokenizer import save_tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--write", action="store_true", help="the pairs that passed into verified.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "tokenizer", 1024)
        worlds: dict[int, Ranks] = {}

        def world(size: int) -> Ranks:
            if size not in worlds:
                (folder / str(size)).mkdir()
                worlds[size] = Ranks(size, folder / str(size))
            return worlds[size]

        torch.set_num_threads(1)
        outcomes, todo = [], rows(args.device)
        for number, row in enumerate(todo, 1):
            outcomes.append(run_row(row, world, folder, str(folder / "tokenizer"), args.device))
            last = outcomes[-1]
            word = "ok" if last.passed else "FAILED"
            print(f"{number}/{len(todo)} {word} {last.latent_error:.2g} {last.psnr_db:.1f} dB {row}", flush=True)
        for ranks in worlds.values():
            ranks.close()
    if args.write:
        TABLE.write_text(json.dumps(table_of(outcomes, args.device), indent=0) + "\n")


if __name__ == "__main__":
    main()
