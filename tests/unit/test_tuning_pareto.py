"""Fronts and choices: known answers, and what must hold for any figures."""

from hypothesis import given
from hypothesis import strategies as st

from sakuga.tuning.pareto import best_of, better, equals, front, measured, pooled, recommended
from sakuga.tuning.trials import DONE, FAILED, STOPPED, TrialResult

OBJECTIVES = ("ref_ssim", "seconds")


def trial(name, ssim, seconds, state=DONE):
    return TrialResult(id=name, point={"x": name}, state=state, figures={"ref_ssim": ssim, "seconds": seconds})


SLOW, GOOD, FAST, BAD = (
    trial("slow", 1.0, 4.0),
    trial("good", 0.95, 1.2),
    trial("fast", 0.5, 1.0),
    trial("bad", 0.4, 3.0),
)


def test_the_front_is_what_nobody_beats():
    assert front([BAD, FAST, GOOD, SLOW], OBJECTIVES) == [SLOW, GOOD, FAST]
    assert recommended([BAD, FAST, GOOD, SLOW], OBJECTIVES) == GOOD
    assert best_of([BAD, FAST, GOOD], "seconds") == FAST


def test_trials_that_ended_badly_or_report_no_number_do_not_count():
    failed, nan = trial("failed", 2.0, 0.1, FAILED), trial("nan", float("nan"), 0.1)
    assert measured([failed, nan, GOOD], OBJECTIVES) == [GOOD]
    assert front([failed, nan], OBJECTIVES) == [] and recommended([failed], OBJECTIVES) is None


def test_equals_are_those_that_might_as_well_be_taken():
    twin = trial("twin", 0.951, 1.21)
    assert equals([SLOW, GOOD, FAST, BAD, twin], GOOD, OBJECTIVES) == [twin]


def test_a_point_counts_with_the_mean_of_its_seeds():
    def seed(rank, number, loss, state=DONE):
        figures = {"heldout_loss": loss}
        return TrialResult(id=f"{rank}-{number}", point={"rank": rank}, state=state, seed=number, figures=figures)

    lucky = [seed(4, 0, 0.10), seed(4, 1, 0.30), seed(16, 0, 0.16), seed(16, 1, 0.14)]
    chosen = recommended(lucky, ("heldout_loss",))
    assert chosen is not None and chosen.id == "16-1", "the file of the better seed of the better rank"
    assert round(chosen.figures["heldout_loss"], 9) == 0.15
    assert [each.id for each in pooled(lucky, ("heldout_loss",))] == ["4-0", "16-1"]
    halves = [seed(4, 0, 0.01), seed(4, 1, 0.9, STOPPED), seed(16, 0, 0.2)]
    assert [each.id for each in measured(halves, ("heldout_loss",))] == ["16-0"], "a seed of rank 4 was stopped"


def test_less_time_is_better():
    assert better("seconds", 1, 2) and better("ssim", 2, 1) and not better("ssim", 1, 1)


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20)


@given(POINTS)
def test_every_trial_is_on_the_front_or_beaten_by_one_that_is(points):
    trials = [trial(str(n), float(a), float(b)) for n, (a, b) in enumerate(points)]
    best = front(trials, OBJECTIVES)
    assert best

    def beats(a, b):
        x, y = a.figures, b.figures
        as_good = x["ref_ssim"] >= y["ref_ssim"] and x["seconds"] <= y["seconds"]
        return as_good and x != y

    assert not any(beats(a, b) for a in trials for b in best)
    assert all(each in best or any(beats(a, each) for a in best) for each in trials)
    assert recommended(trials, OBJECTIVES) in best
