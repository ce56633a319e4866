"""What a render needs of a device, what is refused and what is proposed instead; `sakuga estimate` says the same.

Run: pytest tests/unit/test_cost_fits.py
"""

import json
from dataclasses import replace

import pytest

from cost_cases import GB, plan_of, recipe_of
from sakuga.cli import main as cli
from sakuga.cost import Planned, check_fits, nearest_fit
from sakuga.cost.footprint import model_parts, part_on_device, stages
from sakuga.engine.plan import ExecutionPlan
from sakuga.errors import MemoryLimitError
from sakuga.parallel import ParallelPlan
from sakuga.recipe import LoraRef, StepCache
from sakuga.wan.catalogue import card
from sakuga.wan.memory import MemoryPlan


def test_a_step_cache_of_hidden_states_takes_memory():
    plain = recipe_of("wan2.1-t2v-14b")
    cached = replace(plain, step_cache=StepCache(kind="teacache", threshold_rel_l1=0.1))
    work = [stages(recipe, card(plain.model), plan_of(), "bf16")[1].work_bytes for recipe in (plain, cached)]
    assert work[1] - work[0] == 2 * 75_600 * 5120 * 2  # a residual of each branch, in bf16


def test_hot_loras_take_memory_and_fused_ones_none():
    recipe = recipe_of("wan2.1-t2v-14b", loras=(LoraRef(sha256="1" * 64),))
    fused, hot = (ExecutionPlan(hot_loras=hot) for hot in (False, True))
    peaks = [max(s.total_bytes for s in stages(recipe, card(recipe.model), plan, "bf16")) for plan in (fused, hot)]
    assert peaks[0] == stages(replace(recipe, loras=()), card(recipe.model), fused, "bf16")[2].total_bytes
    assert peaks[1] > peaks[0]


@pytest.mark.parametrize("name", ["wan2.1-i2v-14b-720p", "wan2.2-t2v-a14b", "wan2.1-vace-1.3b"])
def test_memory_plans_hold_less_and_less(name):
    recipe, entry = recipe_of(name), card(name)
    dit = model_parts(entry, "bf16")[0]
    half = f"layers:{dit.num_blocks // 2 * dit.block_bytes}"
    weights = [stages(recipe, entry, plan_of(memory), "bf16")[1].weight_bytes for memory in
               ("resident", "components", half, "layers:0", "disk")]  # fmt: skip
    assert weights == sorted(weights, reverse=True)
    assert len(set(weights)) == 5
    assert weights[1] == dit.total_bytes == 2 * entry.num_params
    assert part_on_device(dit, MemoryPlan(kind="layers", budget_bytes=dit.total_bytes)) == dit.total_bytes


def test_what_fits_is_not_refused():
    recipe = recipe_of()
    check_fits(recipe, card(recipe.model), plan_of(), 141 * GB, "h200")
    near = nearest_fit(recipe, card(recipe.model), plan_of(), 141 * GB)
    assert (near.change, near.recipe, near.execution) == ("", recipe, Planned.of(plan_of()))


@pytest.mark.parametrize(
    ("memory_gb", "kind", "tiled"),
    [
        (57.5, "resident", True),
        (48, "components", False),
        (40, "layers", False),
        (20, "layers", False),
    ],
)
def test_nearest_fit_takes_the_least_away(memory_gb, kind, tiled):
    recipe, entry = recipe_of(), card("wan2.1-i2v-14b-720p")
    near = nearest_fit(recipe, entry, plan_of(), int(memory_gb * GB))
    assert (near.execution.memory.kind, near.recipe.tiling is not None) == (kind, tiled)
    assert near.peak_bytes <= memory_gb * GB * 0.95
    if kind == "layers":  # the largest budget: one block more would not fit
        block = model_parts(entry, "bf16")[0].block_bytes
        more = replace(
            near.execution, memory=MemoryPlan(kind="layers", budget_bytes=near.execution.memory.budget_bytes + block)
        )
        assert stages(near.recipe, entry, more, "bf16")[1].total_bytes > memory_gb * GB * 0.95


def test_nearest_fit_only_ever_holds_less_than_asked():
    recipe, entry = recipe_of(), card("wan2.1-i2v-14b-720p")
    near = nearest_fit(recipe, entry, plan_of("layers:20GB"), 24 * GB)
    assert near.execution.memory.kind == "layers"
    assert near.execution.memory.budget_bytes < 20 * GB


def test_disk_and_then_more_ranks_for_ten_seconds_of_720p():
    """Activations of 16 GB, which no memory plan makes smaller; on two ranks each has half of the tokens."""
    recipe = recipe_of("wan2.1-t2v-14b", num_frames=161)
    near = nearest_fit(recipe, card(recipe.model), plan_of(), 19 * GB)
    assert (near.execution.memory.kind, near.execution.parallel) == ("disk", ParallelPlan())
    near = nearest_fit(recipe, card(recipe.model), plan_of(), 17 * GB)
    assert near.execution.parallel == ParallelPlan(ulysses=2)
    assert "2 ranks" in near.change


def test_refusal_says_what_is_needed_what_is_there_and_what_would_do():
    recipe = recipe_of()
    with pytest.raises(MemoryLimitError) as refused:
        check_fits(recipe, card(recipe.model), plan_of(), 24 * GB, "rtx4090")
    assert refused.value.code == "E_MEMORY"
    for part in ("1280x720 and 81 frames", "55.2 GB to decode", "rtx4090 has 24.0 GB", "memory layers:"):
        assert part in refused.value.message
    with pytest.raises(MemoryLimitError, match=r"11\.4 GB of weights are needed at once"):  # the text encoder
        check_fits(recipe, card(recipe.model), plan_of(), 11 * GB, "a small GPU")
    large = replace(recipe, num_frames=1001)
    with pytest.raises(MemoryLimitError, match="no plan fits; take a smaller size"):
        check_fits(large, card(recipe.model), plan_of(), 24 * GB, "rtx4090")
    with pytest.raises(MemoryLimitError, match="or with precision int8"):
        check_fits(recipe, card(recipe.model), plan_of(), 32 * GB, "rtx5090")


def test_advice_can_be_typed_and_fits():
    recipe, entry = recipe_of(), card("wan2.1-i2v-14b-720p")
    with pytest.raises(MemoryLimitError) as refused:
        check_fits(recipe, entry, plan_of(), 24 * GB, "rtx4090")
    advised = refused.value.message.split("memory ")[1].split(",")[0]
    check_fits(recipe, entry, plan_of(advised), 24 * GB, "rtx4090")


def test_estimate_prints_the_same_in_both_forms(capsys):
    words = ["estimate", "--model", "wan2.1-i2v-14b-720p", "--gpu", "rtx4090", "--cfg", "2", "--ulysses", "4"]
    assert cli.run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"] == {"width": 1280, "height": 720, "num_frames": 81, "steps": 40}
    assert told["fits"] is False
    assert "memory layers" in told["advice"]
    assert told["peak_bytes"] == max(stage["weight_bytes"] + stage["work_bytes"] for stage in told["stages"])
    assert cli.run(words) == 0
    text = capsys.readouterr().out
    for part in ("8 x rtx4090", f"{told['peak_bytes'] / GB:.1f} GB", "does not fit", told["advice"], "not measured"):
        assert part in text


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["--gpu", "h20"], "E_DEVICE", "did you mean 'h200'"),
        (["--width", "130"], "E_GEOMETRY", "nearest: 128x128"),
        (["--ulysses", "3"], "E_PLAN", "take cfg 1 x ulysses 1 x ring 3"),
        (["--guidance", "1", "--cfg", "2"], "E_PLAN", "there is one"),
        (["--memory", "lyers:1GB"], "E_PLAN", "did you mean 'layers'"),
        (["--precision", "fp9"], "E_RECIPE", "did you mean 'fp8'"),
        (["--task", "vase"], "E_MODEL", "t2v, i2v"),
        (["--steps", "0"], "E_RECIPE", "from 1 to 1000"),
        (["--block-share", "0"], "E_USAGE", "--block-share"),
    ],
)
def test_estimate_refuses(words, code, hint, capsys):
    assert cli.run(["estimate", "--gpu", "h200", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error {code}: ")
    assert hint in told
