"""Which trial is next: every algorithm to its end, and again over what an earlier driver has left."""

import dataclasses
import json

import optuna
import pytest

from sakuga.tuning.search import Search, distribution, label, random_points, value_of
from sakuga.tuning.space import parse_space
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, FAILED, REFUSED, STOPPED, SweepFolder, TrialResult

SPACE = {"rank": [4, 8], "targets": [["q"], ["q", "k"]], "lr": {"low": 0.001, "high": 0.01, "log": True}}


def sweep_of(**changes):
    return parse_sweep(
        {"name": "t", "kind": "training", "data": "d", "space": SPACE, "objectives": ["heldout_loss", "train_s"],
         "budget": {"tokens": 1000, "trials": 6}, "search": {"algorithm": "tpe"}, "seeds": [3, 4]} | changes
    )  # fmt: skip


GRID = {"space": {"rank": [4, 8], "lr": [0.1, 0.2]}, "search": {}, "budget": {"tokens": 1000}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "t").mkdir()
    return SweepFolder(tmp_path / "t")


def end(search, folder, work, state=DONE):
    figures = {"heldout_loss": float(work.point["lr"]) + work.seed, "train_s": 1.0} if state == DONE else {}
    result = TrialResult(id=work.id, point=work.point, state=state, figures=figures, seed=work.seed)
    folder.write(result)
    search.done(work, result)


def finish(search, folder, limit=100):
    works = []
    while len(works) < limit and (work := search.next()) is not None:
        works.append(work)
        end(search, folder, work)
    return works


def study(folder):
    return optuna.load_study(study_name="t", storage=f"sqlite:///{folder.path / 'optuna.sqlite'}")


def ids(works):
    return [work.id for work in works]


def test_a_grid_once_with_each_seed(folder):
    sweep = sweep_of(**GRID)
    search = Search(sweep, folder)
    assert (search.limit, search.num_trials) == (4, 8)
    works = finish(search, folder)
    assert [(work.point["rank"], work.point["lr"], work.seed) for work in works[:3]] == [
        (4, 0.1, 3), (4, 0.1, 4), (4, 0.2, 3)
    ]  # fmt: skip
    assert len(set(ids(works))) == 8
    assert [trial.values for trial in study(folder).trials] == [[pytest.approx(3.6), 1], [pytest.approx(3.7), 1]] * 2
    assert finish(Search(sweep, folder), folder) == []
    assert len(study(folder).trials) == 4
    assert len(finish(Search(sweep_of(**GRID | {"budget": {"tokens": 1, "trials": 3}}), folder), folder)) == 0


@pytest.mark.parametrize("algorithm", ["random", "tpe", "nsga2"])
def test_a_search_that_dies_in_the_middle_goes_on(folder, algorithm):
    sweep = sweep_of(search={"algorithm": algorithm})
    search = Search(sweep, folder)
    first = finish(search, folder, limit=5)
    lost = search.next()  # under way when its driver dies
    rest = finish(Search(sweep, folder), folder)
    assert lost.id == rest[0].id
    assert rest[0].point == lost.point  # from the storage, as it was
    assert len(set(ids([*first, *rest]))) == len(first) + len(rest) == 12
    complete = [trial for trial in study(folder).trials if trial.state.name == "COMPLETE"]
    points = {json.dumps(trial.params, sort_keys=True) for trial in complete}
    assert len(points) == 6
    assert not [trial for trial in study(folder).trials if trial.state.name == "RUNNING"]
    assert finish(Search(sweep, folder), folder) == []


@pytest.mark.parametrize("algorithm", ["grid", "tpe"])
@pytest.mark.parametrize("state", [FAILED, REFUSED])
def test_the_next_driver_runs_again_what_failed(folder, algorithm, state):
    grid = GRID if algorithm == "grid" else {}
    sweep = sweep_of(**{**grid, "search": {"algorithm": algorithm}, "seeds": [0]})
    search = Search(sweep, folder)
    failed, stopped = search.next(), search.next()
    folder.add_to_curve(failed.id, {"share": 0.25})
    end(search, folder, failed, state)
    end(search, folder, stopped, STOPPED)
    others = finish(search, folder)
    assert failed.id not in ids(others)  # by the same driver it is not
    (again,) = finish(Search(sweep, folder), folder)
    assert (again.id, again.point) == (failed.id, failed.point)
    assert folder.result(failed.id).state == DONE and folder.curve(failed.id) == []
    told = [trial for trial in study(folder).trials if trial.values == [pytest.approx(again.point["lr"]), 1.0]]
    assert [trial.params["rank"] for trial in told].count(again.point["rank"]) == 1
    count = len(study(folder).trials)
    assert finish(Search(sweep, folder), folder) == []
    assert len(study(folder).trials) == count


def test_a_point_that_had_ended_untold_is_told(folder):
    sweep = sweep_of()
    search = Search(sweep, folder)
    works = [search.next(), search.next()]
    for work in works:
        folder.write(TrialResult(id=work.id, point=work.point, state=DONE, seed=work.seed,
                                 figures={"heldout_loss": 1.0, "train_s": 2.0}))  # fmt: skip
    Search(sweep, folder)
    assert study(folder).trials[0].values == [1.0, 2.0]


@pytest.mark.parametrize("state", [FAILED, REFUSED, STOPPED])
def test_trials_without_figures_teach_nothing(folder, state):
    search = Search(sweep_of(seeds=[0]), folder)
    end(search, folder, search.next(), state)
    assert [trial.state.name for trial in study(folder).trials] == ["FAIL"]
    assert len(finish(search, folder)) == 5


def test_a_point_counts_with_the_seeds_that_got_through(folder):
    search = Search(sweep_of(), folder)
    failed, good = search.next(), search.next()
    end(search, folder, failed, FAILED)
    end(search, folder, good)
    assert study(folder).trials[0].values == [good.point["lr"] + 4, 1.0]


def test_a_small_space_ends_before_its_budget(folder):
    sweep = sweep_of(space={"rank": [4, 8, 16]}, budget={"tokens": 1, "trials": 50}, seeds=[0])
    search = Search(sweep, folder)
    assert search.limit == 3
    works = []
    while (work := search.next()) is not None:
        works.append(work)  # all at once: a point that is asked for twice is under way
    assert sorted(work.point["rank"] for work in works) == [4, 8, 16]
    for work in works:
        result = TrialResult(id=work.id, point=work.point, state=DONE, figures={"heldout_loss": 1.0, "train_s": 1.0})
        search.done(work, dataclasses.replace(result, seed=work.seed))
    assert {trial.state.name for trial in study(folder).trials} == {"COMPLETE"}


def test_values_of_every_kind_come_back_from_the_storage():
    space = parse_space(
        {"a": [None, "x", 1, 2.5, True], "b": [["q"], ["q", "k"], {"kind": "teacache"}], "rank": {"low": 1, "high": 9}}
    )
    for name in ("a", "b"):
        for value in space[name].values:
            assert value_of(space[name], label(space[name], value)) is value
        distribution(space[name])
    assert distribution(space["rank"]).to_internal_repr(9) == 9
    space = parse_space(SPACE | {"rank": {"low": 1, "high": 9}})
    points = random_points(space, 20, seed=1)
    assert points == random_points(space, 20, seed=1)
    assert len(points) == 20
    assert all(0.001 <= point["lr"] <= 0.01 and isinstance(point["rank"], int) for point in points)
    assert len(random_points(parse_space({"a": [1, 2]}), 20, seed=1)) == 2
