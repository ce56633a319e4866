"""One Ray cluster for all tests of this folder that do not start their own, and a manifest writer."""

import json
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def ray_cluster():
    """A local cluster without a dashboard; its workers can import the fakes of this folder and the one above."""
    import ray

    from sakuga import settings
    from sakuga.farm.cluster import LOGICAL_CPUS, OBJECT_STORE_BYTES, RAY_ENVIRONMENT

    settings.set_for_libraries(RAY_ENVIRONMENT)
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")]))
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        num_gpus=8,  # logical ones, for placement
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def manifest(tmp_path):
    """`manifest("prompt", {"prompt": ..., "id": ...})` writes a JSONL file, one row for each argument."""

    def write(*rows: str | dict, name: str = "manifest.jsonl") -> Path:
        path = tmp_path / name
        values = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
        path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
        return path

    return write
