"""The table of verified pairs: what it says, who may rely on it, and that it is what the matrix covers."""

import doctest
import itertools
import json

import pytest

import families
import matrix
from sakuga.engine import LocalEngine, verified
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.verified import TABLE, check_verified, family_of, features, pairs_of, unverified_pairs
from sakuga.errors import UnverifiedError
from sakuga.parallel import ParallelPlan
from sakuga.recipe import ImageRef, RenderRecipe, VideoRef
from sakuga.wan.catalogue import card, cards
from sakuga.wan.mini.tokenizer import save_tokenizer
from tiny_wan import tiny_t2v

PLAIN = features(families.task("t2v")[0], card("wan2.1-t2v-1.3b"), ExecutionPlan())
RINGED = dict(PLAIN, plan="ring", cache="forecast")


@pytest.fixture
def without(monkeypatch):
    """The table without some pairs."""

    def leave_out(*pairs):
        table = json.loads(TABLE.read_text())["pairs"]
        monkeypatch.setattr(
            verified, "_table", lambda: {"cpu": [x for x in table["cpu"] if x not in pairs], "cuda": []}
        )

    return leave_out


def test_the_examples_of_the_module():
    assert doctest.testmod(verified).failed == 0


def test_rows_cover_every_possible_pair_and_the_table_holds_no_other():
    """A row that failed takes its pairs out of the table, unless another row has them: so each can be looked for."""
    axes = [axis for axis in matrix.AXES if axis != "resume_at"]
    covered = {
        pair for row in matrix.rows() for pair in itertools.combinations([(axis, row[axis]) for axis in axes], 2)
    }
    assert all(matrix.is_possible(row) for row in matrix.rows())
    for one, other in itertools.combinations(axes, 2):
        for pair in itertools.product(matrix.AXES[one], matrix.AXES[other]):
            row = {**{axis: matrix.AXES[axis][0] for axis in matrix.AXES}, one: pair[0], other: pair[1]}
            if matrix.is_possible(row):
                assert ((one, pair[0]), (other, pair[1])) in covered
    stored = json.loads(TABLE.read_text())
    assert stored["made"]["cpu"]["rows"] == len(matrix.rows())
    expected = set()
    for row in matrix.rows():
        recipe, _ = families.task(row["family"])
        found = features(recipe, card(recipe.model), matrix.execution_of(row))
        found = {**found, **{axis: row[axis] for axis in ("cache", "loras", "precision", "tiling")}}
        expected |= pairs_of(found)
    assert set(stored["pairs"]["cpu"]) == expected, "run `python tests/matrix.py --write`"


def test_every_card_and_task_of_the_catalogue_has_a_family_in_the_matrix():
    covered = {
        family_of(recipe, card(recipe.model)) for recipe, _ in (families.task(name) for name in matrix.AXES["family"])
    }
    image, sha = (lambda *roles: tuple(ImageRef(role=role, sha256="0" * 64) for role in roles)), "0" * 64
    given = {
        "t2v": {},
        "i2v": {"images": image("input_image")},
        "flf2v": {"images": image("input_image", "end_image")},
        "v2v": {"videos": (VideoRef(role="input_video", sha256=sha),)},
        "control": {"videos": (VideoRef(role="control_video", sha256=sha),)},
        "vace": {"videos": (VideoRef(role="vace_video", sha256=sha),)},
        "camera": {"images": image("input_image"), "camera_direction": "Left"},
    }
    for model in cards():
        for task in model.tasks:
            recipe = RenderRecipe(model=model.name, weights_sha256=sha, prompt="x", seed=1, **given[task])
            assert family_of(recipe, model) in covered, f"{model.name} {task}"


def test_a_pair_outside_the_table_is_refused_by_name(without):
    check_verified(RINGED, "cpu", allow=False)
    without("cache=forecast plan=ring")
    with pytest.raises(
        UnverifiedError, match="cache=forecast with plan=ring was never held to the plain render on cpu"
    ):
        check_verified(RINGED, "cpu", allow=False)
    assert check_verified(PLAIN, "cpu", allow=False) == ()
    assert check_verified(RINGED, "cpu", allow=True) == ("not verified on cpu: cache=forecast with plan=ring",)


def test_on_a_gpu_one_process_is_believed_and_several_are_not():
    one = dict(PLAIN, precision="bf16", memory="components", cache="forecast", loras="fused")
    assert unverified_pairs(one, "cuda") == []
    for other in ({"plan": "ulysses"}, {"precision": "fp8"}, {"memory": "layers"}, {"compile": "yes"}):
        assert unverified_pairs(dict(PLAIN, **other), "cuda")
    with pytest.raises(UnverifiedError, match="plan=ulysses was never held to the plain render on cuda; leave it out"):
        check_verified(dict(PLAIN, plan="ulysses"), "cuda", allow=False)


def test_the_engine_asks_before_it_begins_and_before_it_goes_on(tmp_path, without):
    save_tokenizer(tmp_path / "tokenizer", 1024)
    model = tiny_t2v(tmp_path / "tokenizer")
    recipe, inputs = families.task("t2v")
    state = LocalEngine(model).step(LocalEngine(model).start(recipe, inputs))
    LocalEngine(model).snapshot(state, tmp_path / "s.safetensors")
    compiled = ExecutionPlan(compile=True)
    with pytest.raises(UnverifiedError, match="compile=yes was never held"):
        LocalEngine(model, compiled).start(recipe, inputs)
    with pytest.raises(UnverifiedError, match="compile=yes was never held"):
        LocalEngine(model, compiled).restore(tmp_path / "s.safetensors")
    allowed = LocalEngine(model, ExecutionPlan(compile=True, allow_unverified=True))
    assert any("not verified on cpu: " in note for note in allowed.start(recipe, inputs).notes)


def test_quantized_weights_have_their_loras_beside_them():
    recipe, _ = families.task("t2v", precision="int8")
    assert features(recipe, card(recipe.model), ExecutionPlan())["loras"] == "none"
    plan = ExecutionPlan(parallel=ParallelPlan(cfg=2, ring=3), compile=True)
    assert features(recipe, card(recipe.model), plan) | {"plan": "cfg+ring", "compile": "yes"} == features(
        recipe, card(recipe.model), plan
    )


def test_a_failed_row_takes_its_pairs_with_it():
    row, plain = matrix.rows()[0], dict(PLAIN)
    made = {"row": row, "psnr_db": 100.0, "same_on_all_ranks": True}
    good = matrix.Outcome(**made, features=plain, latent_error=0.0)
    bad = matrix.Outcome(**made | {"psnr_db": 20.0}, features=plain | {"cache": "forecast"}, latent_error=0.0)
    pairs = matrix.table_of([good, bad])["pairs"]["cpu"]
    assert pairs == sorted(pair for pair in pairs_of(plain) if "cache=none" in pair)
