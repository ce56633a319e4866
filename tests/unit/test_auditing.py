"""The auditor's replica without Ray: what an operator turns holds at once, and an error ends nothing."""

import dataclasses
import threading

import pytest
from pydantic import ValidationError

from sakuga.errors import ClusterError
from sakuga.farm.auditing import AuditorReplica
from sakuga.farm.pools import AuditArgs
from sakuga.farm.serving import Api

LIMIT_S = 30.0


@dataclasses.dataclass
class Farm:
    """As much of FarmArgs as a replica asks for."""

    objects: str
    audits: AuditArgs = dataclasses.field(default_factory=lambda: AuditArgs(enabled=False, poll_s=3600.0))

    def stores(self):
        return None


class Rounds:
    """Notes the rules of each round; raises in the first one."""

    def __init__(self) -> None:
        self.seen, self.turn = [], threading.Semaphore(0)

    def __call__(self, auditor) -> None:
        self.seen.append(auditor.rules)
        self.turn.release()
        if len(self.seen) == 1:
            raise ValueError("a bug")

    def wait(self) -> None:
        assert self.turn.acquire(timeout=LIMIT_S), "no round"


@pytest.fixture
def rounds(monkeypatch):
    found = Rounds()
    monkeypatch.setattr("sakuga.tuning.audit.Auditor.tick", lambda auditor: found(auditor))
    return found


def test_what_an_operator_turns_holds_in_the_next_round_which_is_now(rounds, tmp_path):
    replica = AuditorReplica(Farm(str(tmp_path)))  # ty: ignore[invalid-argument-type]
    rounds.wait()
    replica.check_health()
    replica.reconfigure({"enabled": True, "max_running": 3, "poll_s": 3600.0})
    rounds.wait()
    assert [(rules.is_on, rules.max_running) for rules in rounds.seen] == [(False, 0), (True, 3)]
    with pytest.raises(ValidationError, match="share_maximum"):
        replica.reconfigure({"share_maximum": 1})
    replica.__del__()
    replica._thread.join(LIMIT_S)
    with pytest.raises(ClusterError, match="thread has ended"):
        replica.check_health()


def test_the_api_takes_its_share_from_the_same_knobs():
    api = Api.__new__(Api)
    shares = []
    for config in ({}, {"share_max": 0.25}, {"share_max": 0.25, "enabled": False}):
        api.reconfigure(config)
        shares.append(api._audits.share)
    assert shares == [1.0, 0.25, 0.0]
