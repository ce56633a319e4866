"""Lanes by seconds of work."""

from sakuga.farm.autoscaling import IDLE_S, BacklogPolicy


def policy(**fields):
    given = {"metrics_url": "", "model": "m", "drain_s": 60.0, "cold_start_s": 30.0, "min_lanes": 0, "max_lanes": 8}
    return BacklogPolicy(**(given | fields))


def test_lanes_follow_the_work_and_only_idle_ones_go():
    lanes = policy()
    assert lanes.decide(600.0, 0.0, 0, 0, 0.0) == 8
    assert lanes.decide(61.0, 0.0, 0, 0, 0.0) == 2
    assert lanes.decide(0.0, 30.0, 1, 4, 1.0) == 4
    assert lanes.decide(0.0, 30.0, 1, 4, 2.0 + IDLE_S) == 1, "the busy one stays"
    assert policy(min_lanes=2).decide(0.0, 0.0, 0, 2, 1e9) == 2
