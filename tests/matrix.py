"""Rows that cover every pair of the engine's features, and how one is held to the plain render on one process.

    python tests/matrix.py --write        # render all rows (some minutes) and write src/sakuga/engine/verified.json

A row names a family, a plan, a step cache, LoRAs, a precision, tiles, a memory plan and a step to resume at. The
reference is the same recipe on one process with everything resident and LoRAs fused where they can be. Compiled blocks
are left out: on a CPU each row would take a minute, and what a GPU's generated kernels do it would not tell.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
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


@cache
def rows() -> tuple[dict[str, str], ...]:
    """Every possible pair of values stands in one of them at least; the same rows in the same order every time."""
    found = make(AXES, strength=2, pre_filter=is_possible)
    return tuple({axis: row[axis] for axis in AXES} for row in found)


def model_of(row: dict[str, str], tokenizer_dir: str) -> LoadedModel:
    """A tiny model in the row's precision; its card has TeaCache coefficients, whichever family it is."""
    model = getattr(tiny_wan, f"tiny_{row['family']}")(tokenizer_dir)
    precision = PRECISIONS[row["precision"]]
    model.pipe.to(dtype=precision.dtype)
    model.pipe.torch_dtype = precision.dtype
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


def run_row(row: dict[str, str], world, folder: Path, tokenizer_dir: str) -> Outcome:
    """`world` gives the processes of a world size; a plan of one process runs here."""
    recipe, inputs = recipe_of(row, folder, tokenizer_dir)
    plain = row | {"plan": "single", "memory": "resident"}
    if row["loras"] == "hot" and not PRECISIONS[row["precision"]].method:
        plain |= {"loras": "fused"}
    expected, expected_frames = render(plain, recipe, inputs, folder, tokenizer_dir, None)
    resume_at = None if row["resume_at"] == "never" else int(row["resume_at"])
    num_ranks = PLANS[row["plan"]].world_size
    if num_ranks == 1:
        answers = [render(row, recipe, inputs, folder, tokenizer_dir, resume_at)]
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
    row: dict[str, str], recipe, inputs, folder: Path, tokenizer_dir: str, resume_at: int | None, mesh=None
) -> tuple[torch.Tensor, np.ndarray]:
    """Latents and frames of a row on this process, or on this rank of a mesh."""
    from sakuga.engine.ranks import RankEngine

    def engine() -> LocalEngine:
        model = model_of(row, tokenizer_dir)
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
    return state.latents_BCTHW, used.finish(state).frames_THWC


def table_of(outcomes: list[Outcome]) -> dict[str, object]:
    """What `verified.json` holds: pairs of the rows that passed, without those of a row that did not."""
    passed = {pair for outcome in outcomes if outcome.passed for pair in pairs_of(outcome.features)}
    return {
        "made_by": "python tests/matrix.py --write",
        "date": date.today().isoformat(),
        "rows": len(outcomes),
        "pairs": {"cpu": sorted(passed), "cuda": []},
    }


def main() -> None:
    from sakuga.wan.mini.tokenizer import save_tokenizer

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
        outcomes = []
        for number, row in enumerate(rows(), 1):
            outcomes.append(run_row(row, world, folder, str(folder / "tokenizer")))
            last = outcomes[-1]
            word = "ok" if last.passed else "FAILED"
            print(f"{number}/{len(rows())} {word} {last.latent_error:.2g} {last.psnr_db:.1f} dB {row}", flush=True)
        for ranks in worlds.values():
            ranks.close()
    if "--write" in sys.argv:
        TABLE.write_text(json.dumps(table_of(outcomes), indent=0) + "\n")


if __name__ == "__main__":
    main()
