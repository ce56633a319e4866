"""The whole circle with tiny numbers: data, LoRA, sweep, gate, the running farm, requests, audit, rollback."""

import json

from sakuga.cli.main import run


def test_from_nothing_to_a_profile_in_the_farm_and_back_out(ray_cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SAKUGA_URL", raising=False)
    assert run(["loop", "--quick", "--out", str(tmp_path / "loop"), "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert result["trials"]["counts"] == {"done": 2}
    assert result["profile"]["speedup"] > 0 and result["profile"]["ref_ssim"] < 1
    assert result["audits"]["passed"] + result["audits"]["failed"] >= 1, "the farm rendered it again by itself"
    assert "ref_ssim" in result["rolled_back"]["faults"][0]
    (entry,) = result["rolled_back"]["profiles"]
    assert (entry["state"], entry["reason"]) == ("retired", "rolled_back")
    page = (tmp_path / "loop" / "sweeps" / "loop" / "report.html").read_text()
    assert result["profile"]["trial"] in page
    commands = [line for line in printed.err.splitlines() if line.startswith("$ sakuga ")]
    assert [line.split()[2] for line in commands][:5] == ["synth", "prepare", "train", "sweep", "serve"]
    renders = list((tmp_path / "loop" / "sweeps" / "loop" / "renders").glob("*.mkv"))
    assert len(renders) == 3, "two settings and the reference; gate and rollback rendered nothing"
