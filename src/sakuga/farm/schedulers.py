"""Tune's schedulers for the trials of a sweep: which go on, and with which rate.

Time is counted in tokens, which clips of any length have alike. Tune forgets the rungs of successive halving when a
driver dies; here they follow from what all trials have reported, also those that were under way.

Run: pytest tests/ray/test_tune.py
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.utils import flatten_dict

from sakuga.tuning.space import Choice
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.trials import CURVE, SweepFolder

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

TRIAL = "trial"
"""Of Tune's settings: which trial it is."""
HELD_OUT = "figures/heldout_loss"
"""As Tune names what executors report."""


class _Patient:
    """Leaves the choice of the next trial to the controller, which waits for executors that are starting.

    Tune's own choice hands the first free executor to a trial whose own is on its way, and ends that one: where a
    trial is shorter than the start of an executor, there would never be a second one.
    """

    def choose_trial_to_run(self, tune_controller: TuneController) -> None:
        return None


class _InTurn(_Patient, FIFOScheduler):
    """No trial is stopped."""


class _Halving(_Patient, ASHAScheduler):
    """The worse trials are stopped at each rung.

    Trials are known by their names and not by Tune's ids, so that one that goes on under another driver counts once.
    """

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict) -> str:
        return super().on_trial_result(tune_controller, _named(trial), result)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict) -> None:
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        super().on_trial_remove(tune_controller, _named(trial))


def scheduler_of(sweep: Sweep, folder: SweepFolder) -> TrialScheduler:
    """With what trials have shown."""
    chosen, tokens = sweep.scheduler, sweep.budget.tokens or 1
    if chosen.name == "asha":
        halving = _Halving(
            time_attr="tokens",
            metric=HELD_OUT,
            mode="min",
            max_t=tokens,
            grace_period=max(1, int(chosen.grace * tokens)),
            reduction_factor=chosen.reduction_factor,
        )
        _replay(halving, folder)
        return halving
    if chosen.name == "pbt":
        return PopulationBasedTraining(
            time_attr="tokens",
            metric=HELD_OUT,
            mode="min",
            perturbation_interval=max(1, int(chosen.interval * tokens)),
            hyperparam_mutations={TRIAL: {"point": {"lr": _mutation(sweep)}}},
            custom_explore_fn=functools.partial(_within, sweep.parameters["lr"].ends()),
            require_attrs=False,
        )
    return _InTurn()


def _mutation(sweep: Sweep) -> object:
    parameter = sweep.parameters["lr"]
    if isinstance(parameter, Choice):
        return list(parameter.values)
    return (tune.loguniform if parameter.log else tune.uniform)(parameter.low, parameter.high)


def _within(ends: Sequence[object], config: dict) -> dict:
    """A changed rate stays between the ends of the space."""
    rates = cast("Sequence[float]", ends)
    config[TRIAL]["point"]["lr"] = min(max(config[TRIAL]["point"]["lr"], min(rates)), max(rates))
    return config


def _replay(scheduler: ASHAScheduler, folder: SweepFolder) -> None:
    """The rungs as they were: Tune does not keep them when a driver dies."""
    controller = cast("TuneController", None)  # which it does not ask
    for path in sorted(folder.trials.glob(f"*/{CURVE}")):
        trial = cast("Trial", path.parent.name)
        scheduler.on_trial_add(controller, trial)
        for line in folder.curve(path.parent.name):
            scheduler.on_trial_result(controller, trial, flatten_dict(line))


def _named(trial: Trial) -> Trial:
    """What of a trial the rungs keep."""
    return cast("Trial", SimpleNamespace(trial_id=str(trial)))
