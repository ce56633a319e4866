"""Trials that are predicted not to fit: refused, or made smaller step by step."""

import pytest

from sakuga.cost.training import TrainPlan, train_bytes
from sakuga.errors import MemoryLimitError
from sakuga.tuning.admission import admit
from sakuga.wan.catalogue import card
from tiny_training import config

CARD = card("wan2.1-t2v-1.3b")
PLAN = TrainPlan(settings=config(rank=16, base_precision="bf16"), width=832, height=480, num_frames=33, micro_batch=4)


def needed(**changes):
    """Bytes of a device that this plan fits on."""
    import dataclasses

    settings = {name: changes.pop(name) for name in list(changes) if name == "checkpointing"}
    plan = dataclasses.replace(PLAN, settings=dataclasses.replace(PLAN.settings, **settings), **changes)
    return round(train_bytes(plan, CARD).peak / 0.85)


def test_what_fits_is_left_alone():
    assert admit(PLAN, CARD, needed(), resizes=True) == (PLAN, None)


def test_smaller_batches_first_and_then_activations_made_again():
    plan, note = admit(PLAN, CARD, needed(micro_batch=2), resizes=True)
    assert (plan.micro_batch, plan.settings.checkpointing) == (2, "none")
    assert "micro-batches of 2 for 4" in note
    plan, note = admit(PLAN, CARD, needed(micro_batch=1, checkpointing="recompute"), resizes=True)
    assert (plan.micro_batch, plan.settings.checkpointing) == (1, "recompute")
    assert note.endswith("micro-batches of 1 for 4, activations made again")


@pytest.mark.parametrize(("memory", "resizes"), [(needed(micro_batch=2), False), (10**9, True)])
def test_what_never_fits_is_refused_with_both_figures(memory, resizes):
    with pytest.raises(MemoryLimitError, match=r"4 x 832x480 and 33 frames .* needs? .* the executor has"):
        admit(PLAN, CARD, memory, resizes=resizes)
