"""What the benchmarks print: one JSON object as the last line of stdout, with or without --json.

Run: pytest tests/unit/test_benchmarks.py
"""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sakuga.recipe import LoraRequest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmark("first_light", "--json")` is the module, its command line set."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str, *words: str):
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *words])
        return importlib.import_module(name)

    yield load
    for name in ("common", "first_light", "mini_quality", "gpu", "gpu_model", "gpu_train", "fewstep", "loop", "sweep"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_first_light_ends_in_one_line_of_json(benchmark, words, monkeypatch, capsys):
    module = benchmark("first_light", *words)
    for part in ("time_synth", "time_demo", "time_render"):
        monkeypatch.setattr(module, part, lambda *_, part=part: {part: 0.25})
    module.main()
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert (result["benchmark"], result["time_demo"]) == ("first_light", 0.25)
    assert ('"time_demo": 0.25' in printed.err) is not bool(words)


def test_sweep_ends_in_one_line_of_json(benchmark, monkeypatch, capsys, tmp_path):
    module = benchmark("sweep", "--json")
    monkeypatch.setattr(module, "prepare_data", lambda folder: folder)
    for part in ("warm", "nested", "resume"):
        monkeypatch.setattr(module, f"measure_{part}", lambda *_, part=part: {"overhead_s": len(part)})
    module.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["warm"]["overhead_s"], result["nested"]["overhead_s"]) == (4, 6)
    assert module.sweep_of("warm", tmp_path, ranks=(4, 8), rates=(0.001,)).budget.tokens == 2560


def test_a_result_that_is_no_number_is_refused(benchmark):
    with pytest.raises(ValueError, match="JSON"):
        benchmark("common").print_result({"gain_db": float("nan")}, as_json=True)


def test_mini_quality_scores_every_geometry(benchmark, monkeypatch, capsys):
    module = benchmark("mini_quality", "--skip", "i2v", "fairy", "t2v", "--geometry-count", "1", "--json")
    asked = []

    def render(_engine, _options, _prompt, _seed, _image, *, width, height, num_frames, loras):
        asked.append((width, height, num_frames, loras))
        return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8), 0.5

    monkeypatch.setattr(module, "render", render)
    monkeypatch.setattr(module, "through_vae", lambda _engine, video: video)
    monkeypatch.setattr(module.LocalEngine, "load", lambda *_: None)
    monkeypatch.setattr(module, "GEOMETRIES", ((32, 48, 5), (48, 32, 9)))
    module.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert asked == [(32, 48, 5, []), (48, 32, 9, [])]
    assert result["geometry_count"] == 1
    assert set(result["geometries"]) == {"32x48x5", "48x32x9"}
    for figures in result["geometries"].values():
        assert figures["gain_db"] < 0 < 1 < figures["motion_ratio"], "noise is worse than the first frame, and busier"


def test_mini_quality_covers_portrait_landscape_short_and_long(benchmark):
    assert set(benchmark("mini_quality").GEOMETRIES) == {(96, 160, 33), (160, 96, 33), (128, 128, 17), (128, 128, 77)}


def test_the_gpu_script_runs_every_part_at_toy_shapes(benchmark, capsys):
    """What a GPU alone has is refused by name in its row; nothing falls back."""
    words = ["--tiny", "--device", "cpu", "--repeats", "1", "--json"]
    words += [word for part in ("attention", "memory", "vae", "lora", "matmul") for word in ("--only", part)]
    module = benchmark("gpu", *words)
    module.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["tiny"] is True
    assert result["attention"]["480p"]["chosen"] == "sdpa"
    assert {*result["memory"]["480p"]} == {"resident", "layers:8GB", "layers:1"}
    assert {*result["vae"]} == {"480p whole", "480p tiled"}
    assert result["lora"]["layers"] == 24


def test_the_gpu_scripts_steps_are_stock_diffsynths(benchmark, monkeypatch):
    module = benchmark("gpu")
    monkeypatch.setattr(
        module, "VARIANTS", {name: module.VARIANTS[name] for name in ("stock_sdpa", "bf16", "sage", "fp8")}
    )
    import torch

    bench = module.Bench(device=torch.device("cpu"), repeats=1)
    with torch.no_grad():
        found = module.steps_part(bench, module.TINY, {"480p": "sdpa"}, {"480p": 1.0})
    rows = found["480p"]["variants"]
    assert rows["stock_sdpa"]["cosine"] > 0.9999 and rows["bf16"]["cosine"] == 1
    assert "needs a CUDA device" in rows["sage"]["refused"]
    assert "multiplies fp8" in rows["fp8"]["refused"]


def test_fewstep_compares_with_the_reference_and_the_same_number_of_plain_steps(benchmark):
    module = benchmark("fewstep")
    ways = module.ways(1.5, [LoraRequest(name="fast4"), LoraRequest(name="fast8")])
    assert list(ways) == ["reference", "steps.4", "steps.8", "plain.1", "plain.2", "plain.4", "plain.8"]
    assert [lora.name for lora in ways["steps.8"].loras] == ["fairy", "fast8"]
    assert (ways["reference"].guidance, ways["steps.4"].guidance, len(ways["plain.4"].loras)) == (1.5, 1.0, 1)
    row = {"denoise_s": 1.0, "psnr_db": 20.0, "ssim": 0.5, "ref_ssim": 0.8, "sharpness": 0.2}
    rows = {name: [row] for name in ways}
    rows["reference"] = [row | {"denoise_s": seconds, "ssim": 0.51} for seconds in (30.0, 25.0, 90.0)]
    rows["steps.4"] = [row | {"ref_ssim": 0.9, "sharpness": 0.19}]
    found = module.summary(rows)
    assert found["steps"]["4"] == {
        "denoise_s": 1.0, "psnr_db": 20.0, "ssim": 0.5, "ref_ssim": 0.9, "sharpness": 0.19, "time_ratio": 30.0,
        "ssim_loss": 0.01, "ref_gain": 0.1, "sharpness_vs_reference": 0.95,
    }  # fmt: skip


def test_sharpness_is_gradient_energy(benchmark):
    module = benchmark("fewstep")
    frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert module.gradient_energy(frames) == 0.0
    frames[:, :, 2:] = 10
    assert module.gradient_energy(frames) == pytest.approx(100 / 3)


def test_the_training_script_steps_ours_and_stock_at_toy_shapes(benchmark, capsys, monkeypatch):
    module = benchmark("gpu_train", "--tiny", "--device", "cpu", "--models", "1.3b", "--steps", "2", "--json")
    twins = []
    share = module.sharing_weights
    monkeypatch.setattr(module, "sharing_weights", lambda dit: twins.append((dit, share(dit))) or twins[-1][1])
    module.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = result["models"]["1.3b"]
    assert found["num_tokens"] == 8
    assert found["predicted_bytes"] > 0
    assert all(len(found[side]["all_seconds"]) == 2 for side in ("ours", "stock"))
    ours, stock = (dict(dit.named_parameters()) for dit in twins[0])
    assert set(ours) == set(stock), "the same layers have adapters"
    for name, parameter in ours.items():
        assert (parameter is stock[name]) is (".lora_" not in name), name
        if ".lora_B." in name:
            assert parameter.any() and stock[name].any(), f"{name} was never trained"


def test_loop_keeps_what_the_command_said(benchmark, monkeypatch, capsys):
    module = benchmark("loop", "--quick", "--json")
    asked = []

    def run(command, **_):
        asked.append(command)
        return SimpleNamespace(stdout='noise\n{"request_speedup": 2.0}\n', returncode=0)

    monkeypatch.setattr(module.subprocess, "run", run)
    module.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["request_speedup"]) == ("loop", 2.0) and "commit" in result
    assert "--quick" in asked[-1] and asked[-1][1] == "loop"
