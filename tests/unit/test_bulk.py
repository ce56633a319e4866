"""Parts of a bulk run that need no cluster: paths of a job, counts of GPUs.

Run: pytest tests/unit/test_bulk.py
"""

from pathlib import Path

import pytest

from sakuga.errors import DeviceError, ManifestError, OutputError
from sakuga.farm.bulk import check_job_paths, run_bulk
from sakuga.farm.rows import gpu_shortage


def test_paths_of_a_submitted_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("uploaded.jsonl").write_text("{}")
    check_job_paths(Path("uploaded.jsonl"), tmp_path)
    with pytest.raises(OutputError, match=r"'out', .* absolute path on storage that all nodes share"):
        check_job_paths(Path("uploaded.jsonl"), Path("out"))
    with pytest.raises(ManifestError, match=r"'other\.jsonl' is not .* absolute path"):
        check_job_paths(Path("other.jsonl"), tmp_path)


def test_only_a_submitted_job_refuses_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match="does not exist"):
        run_bulk(Path("m.jsonl"), Path("out"))
    assert Path("out").is_dir()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(OutputError, match="absolute path"):
        run_bulk(Path("m.jsonl"), Path("elsewhere"))
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize(
    ("num_gpus", "num_workers", "words"),
    [(0, 1, "1 worker wants a GPU and Ray sees 0; use --device cpu"), (4, 5, "Ray sees 4; use --num-workers 4")],
)
def test_a_shortage_of_gpus_names_numbers_and_a_cure(num_gpus, num_workers, words):
    assert words in str(gpu_shortage(num_gpus, num_workers))


def test_enough_gpus():
    assert gpu_shortage(2.0, 2) is None


@pytest.mark.parametrize("name", ["cuda:1", "tpu", ""])
def test_ray_chooses_the_gpu(tmp_path, name):
    with pytest.raises(DeviceError, match="Ray gives each worker a GPU; take cpu or cuda"):
        run_bulk(tmp_path / "m.jsonl", tmp_path / "out", device=name)
    assert not (tmp_path / "out").exists()
