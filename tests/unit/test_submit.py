"""Submitting without a cluster: where the job goes.

Run: pytest tests/unit/test_submit.py
"""

import pytest

from sakuga import settings
from sakuga.errors import ClusterError
from sakuga.farm import cluster, submit

REDIRECTIONS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@pytest.fixture(autouse=True)
def another_cluster(monkeypatch):
    for name in REDIRECTIONS:
        monkeypatch.setenv(name, "http://127.0.0.1:1")


def test_the_job_goes_to_the_head_that_was_asked_for(monkeypatch, tmp_path):
    from ray.dashboard.utils import get_address_for_submission_client

    asked = []

    def client(address):
        asked.append(get_address_for_submission_client(address))  # Ray's own rule
        raise ConnectionError("nobody there")

    monkeypatch.setattr(submit, "JobSubmissionClient", client)
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:8265"):
        submit.run_submitted("http://127.0.0.1:8265", tmp_path / "m.jsonl", tmp_path)
    assert asked == ["http://127.0.0.1:8265"]
    assert settings.child_environment({})["RAY_ADDRESS"] == "http://127.0.0.1:1"  # only for the moment


def test_a_head_of_our_own_knows_no_other_cluster(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(cluster.subprocess, "Popen", lambda command, **options: started.append(options["env"]))
    cluster.start_head(tmp_path)
    assert not set(REDIRECTIONS) & set(started[0])
    assert started[0]["RAY_AUTH_MODE"] == "disabled"
