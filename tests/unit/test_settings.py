"""The environment is read in one place, and a wrong value is told."""

from pathlib import Path

import pytest

from sakuga import settings
from sakuga.errors import SettingsError


def test_an_empty_environment_gives_the_defaults():
    found = settings.from_environment({"SAKUGA_CACHE": "", "SAKUGA_NUM_THREADS": "", "HOME": "/somewhere"})
    assert found == settings.Settings(cache_dir=Path.home() / ".cache" / "sakuga")


def test_every_variable_counts(tmp_path):
    found = settings.from_environment(
        {
            "SAKUGA_CACHE": str(tmp_path),
            "SAKUGA_S3_ENDPOINT": "http://127.0.0.1:9000",
            "SAKUGA_NUM_THREADS": "2",
            "SAKUGA_LOG_LEVEL": "debug",
        }
    )
    assert found == settings.Settings(
        cache_dir=tmp_path, s3_endpoint_url="http://127.0.0.1:9000", num_threads=2, log_level="DEBUG"
    )


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("SAKUGA_NUM_THREADS", "0", "from 1 to"),
        ("SAKUGA_NUM_THREADS", "two", "'two'"),
        ("SAKUGA_LOG_LEVEL", "LOUD", "one of DEBUG"),
        ("SAKUGA_S3_ENDPOINT", "localhost:9000", "http://"),
        ("SAKUGA_CASHE", "/x", "did you mean 'SAKUGA_CACHE'"),
    ],
)
def test_wrong_values(name, value, part):
    with pytest.raises(SettingsError) as caught:
        settings.from_environment({name: value})
    assert part in caught.value.message


def test_the_environment_of_a_child(monkeypatch):
    monkeypatch.setenv("SAKUGA_TEST_KEPT", "kept")
    monkeypatch.setenv("SAKUGA_TEST_GONE", "gone")
    child = settings.child_environment({"SAKUGA_TEST_GONE": None, "SAKUGA_TEST_NEW": "new"})
    assert (child["SAKUGA_TEST_KEPT"], child["SAKUGA_TEST_NEW"]) == ("kept", "new")
    assert "SAKUGA_TEST_GONE" not in child


def test_variables_are_gone_for_a_block_and_come_back(monkeypatch):
    monkeypatch.setenv("SAKUGA_TEST_KEPT", "kept")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    seen = []

    def fail():
        with settings.without_variables(["RAY_ADDRESS", "SAKUGA_TEST_NEVER_SET"]):
            seen.append(settings.child_environment({}))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "RAY_ADDRESS" not in seen[0]
    assert seen[0]["SAKUGA_TEST_KEPT"] == "kept"
    assert settings.child_environment({})["RAY_ADDRESS"] == "elsewhere:6379"
    assert "SAKUGA_TEST_NEVER_SET" not in settings.child_environment({})


def test_what_the_user_set_for_a_library_stays(monkeypatch):
    monkeypatch.setenv("SAKUGA_TEST_SET", "mine")
    monkeypatch.setenv("SAKUGA_TEST_UNSET", "")
    monkeypatch.delenv("SAKUGA_TEST_UNSET")  # set and taken away, so that the variable is gone after the test
    settings.set_for_libraries({"SAKUGA_TEST_SET": "ours", "SAKUGA_TEST_UNSET": "ours"})
    assert settings.child_environment({})["SAKUGA_TEST_SET"] == "mine"
    assert settings.child_environment({})["SAKUGA_TEST_UNSET"] == "ours"
