"""Data preparation on Ray: the same set as in one process, and a file that costs no other."""

import dataclasses
import json

from sakuga.farm.prepare import REPORT_NAME, PrepareRequest, prepare
from sakuga.synth.dataset import write_dataset
from sakuga.training.prepared import PreparedSet

TINY = {"width": 32, "height": 32, "num_frames": 5}


def test_workers_give_what_one_process_gives(ray_cluster, tmp_path):
    write_dataset(tmp_path / "data", num_groups=2, first_seed=8, **TINY)
    broken = tmp_path / "data" / "train" / "000008_live" / "video.mp4"
    broken.write_bytes(broken.read_bytes()[:-700])
    request = PrepareRequest(data=tmp_path / "data", out=tmp_path / "ray", cache=str(tmp_path / "cache"), **TINY)
    seen = []
    summary = prepare(request, num_workers=1, on_sample=lambda done, total: seen.append((done, total)))
    assert (summary.num_train, summary.num_test, summary.num_new, summary.num_rejected) == (1, 2, 3, 1)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    alone = prepare(dataclasses.replace(request, out=tmp_path / "alone"))
    assert alone.num_new == 0
    assert PreparedSet.read(tmp_path / "alone") == PreparedSet.read(tmp_path / "ray")
    files = [json.loads((tmp_path / name / REPORT_NAME).read_text())["files"] for name in ("ray", "alone")]
    assert files[0] == files[1]
    assert "damaged" in next(file["reason"] for file in files[0] if file["status"] == "rejected")
