"""Inference trials on a tiny Wan: what they measure, what they keep, what they do not render twice."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sakuga.engine.local import LocalEngine
from sakuga.errors import MemoryLimitError
from sakuga.tuning.measure import InferenceRunner, LoraEvaluator, means, reference_fields
from sakuga.tuning.renders import RenderStore, peak_memory
from sakuga.tuning.space import trial_id
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, REFUSED, CaseFigures, SweepFolder

BASE = {"width": 64, "height": 64, "num_frames": 5, "guidance_scale": 1, "loras": ["fairy"]}
SWEEP = parse_sweep(
    {"name": "s", "kind": "inference", "base": BASE, "reference": {"num_inference_steps": 4},
     "space": {"num_inference_steps": [1, 2, 4]}, "evaluation": {"synth": "fairy", "count": 2},
     "objectives": ["ref_psnr_db", "seconds"]}
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = SweepFolder(tmp_path_factory.mktemp("sweep") / "s")
    folder.create(SWEEP)
    runner = InferenceRunner(SWEEP, folder)
    found = {}
    for steps in (1, 2, 4):
        point = {"num_inference_steps": steps}
        runner.begin(trial_id(point), point, 0)
        shares = []
        while not shares or shares[-1] < 1:
            shares.append(runner.advance().share)
        assert shares == [0.5, 1.0]
        found[steps] = runner.end()
    return folder, found


def test_fewer_steps_are_further_from_the_reference(results):
    _, found = results
    psnrs = [found[steps].figures["ref_psnr_db"] for steps in (1, 2, 4)]
    assert psnrs[0] < psnrs[1] < psnrs[2] == 100.0
    figures = found[1].figures
    assert {"ssim", "flicker", "motion", "seconds", "peak_bytes", "speedup", "motion_ratio"} <= figures.keys()
    assert found[4].figures["speedup"] == 1.0, "the reference itself, rendered once"


def test_results_are_in_the_folder_and_nothing_is_rendered_twice(results, monkeypatch):
    folder, found = results
    assert folder.result(found[2].id) == found[2] and found[2].state == DONE
    assert len(list(folder.renders.glob("*.mkv"))) == 6, "three numbers of steps, two cases"
    assert found[1].overhead_s is None and found[2].overhead_s < 60
    again = InferenceRunner(SWEEP, folder)
    monkeypatch.setattr("sakuga.engine.local.LocalEngine.load", _never)
    again.begin("x", {"num_inference_steps": 2}, 0)
    assert again.advance().figures["seconds"] == found[2].rows[0].figures["seconds"]


def _never(*_):
    raise AssertionError("rendered twice")


def test_a_render_of_another_machine_is_made_anew(results):
    folder, found = results
    store, key = RenderStore(folder.renders), found[2].rows[0].render_key
    assert store.find(key) is not None and store.find(key, "another, 64 threads") is None
    (folder.renders / f"{key}.mkv").write_bytes(b"cut off")
    assert store.find(key) is None
    assert store.find("0" * 64) is None


def test_a_trained_lora_is_judged_with_the_same_figures(results, tmp_path):
    from sakuga.engine.resolve import located
    from sakuga.wan.catalogue import card
    from sakuga.wan.lora import embedded_lora

    found = card("wan-mini")
    lora = embedded_lora("fairy", found.name, located(found).lora_dir, found.loras)
    sweep = parse_sweep(
        {"name": "t", "kind": "training", "data": "d", "space": {"rank": [4, 8]}, "budget": {"tokens": 1000},
         "render": {name: value for name, value in BASE.items() if name != "loras"} | {"num_inference_steps": 1},
         "evaluation": {"synth": "fairy", "count": 1}, "objectives": ["heldout_loss", "ssim"]}
    )  # fmt: skip
    evaluator = LoraEvaluator(sweep, SweepFolder(tmp_path))
    (row,) = evaluator.rows(lora)
    assert {"ssim", "psnr_db", "seconds"} <= row.figures.keys() and "ref_ssim" not in row.figures


def test_the_reference_has_the_size_of_the_trial():
    assert reference_fields(SWEEP, {"num_frames": 9, "num_inference_steps": 1}) == {
        **BASE, "num_frames": 9, "num_inference_steps": 4,
    }  # fmt: skip


def test_means_are_of_figures_that_all_have():
    rows = [CaseFigures(name="a", figures={"x": 1.0, "y": 2.0}), CaseFigures(name="b", figures={"x": 3.0})]
    assert means(rows) == {"x": 2.0} and means([]) == {}


def test_one_disturbed_render_decides_nothing():
    rows = [CaseFigures(name=str(n), figures={"seconds": s, "speedup": 4 / s}) for n, s in enumerate((1.0, 2.0, 40.0))]
    assert means(rows) == {"seconds": 2.0, "speedup": 2.0}


def test_a_video_that_hardly_moves_does_not_decide_the_ratio():
    pairs = ((0.3, 0.1), (5.0, 10.0), (5.0, 10.0))
    rows = [
        CaseFigures(name=str(n), figures={"motion": own, "ref_motion": ref, "motion_ratio": own / ref})
        for n, (own, ref) in enumerate(pairs)
    ]
    assert round(means(rows)["motion_ratio"], 3) == 0.512, "10.3 over 20.1; the mean of ratios is 1.33"
    frozen = CaseFigures(name="f", figures={"motion": 0.0, "ref_motion": 0.0})
    assert "motion_ratio" in means([*rows, frozen]) and "motion_ratio" not in means([frozen])


def test_peak_memory_sees_what_a_block_took():
    import numpy as np
    import torch

    with peak_memory(torch.device("cpu")) as before:
        pass
    with peak_memory(torch.device("cpu")) as peak:
        np.ones(2**26, dtype=np.uint8).sum()
    assert peak[0] - before[0] > 2**25


def test_renders_that_will_not_fit_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalEngine, "load", lambda *_, **__: pytest.fail("nothing is to be loaded"))
    small = SWEEP.executors.model_copy(update={"memory_bytes": 10_000_000})
    runner = InferenceRunner(SWEEP.model_copy(update={"executors": small}), SweepFolder(tmp_path / "s"))
    with pytest.raises(MemoryLimitError, match=r"64x64 and 5 frames .* the executor has 10 MB"):
        runner.begin("a", {"num_inference_steps": 1}, 0)
    assert runner.end(REFUSED, "no room").state == REFUSED


def test_what_another_executor_is_rendering_is_waited_for(tmp_path):
    store, asked, looked = RenderStore(tmp_path), [], threading.Event()
    video = SimpleNamespace(
        seconds={"total": 1.0, "denoise": 0.5}, frames_THWC=np.zeros((1, 16, 16, 3), np.uint8), fps=15
    )
    engine = SimpleNamespace(device=torch.device("cpu"), render=lambda *_: video, receipt=lambda *_: {})
    recipe = SimpleNamespace(render_key="k")
    find = store.find

    def noted(key, machine):
        found = find(key, machine)
        looked.set()
        return found

    store.find = noted
    with ThreadPoolExecutor(1) as pool:
        with store._claim("k"):
            other = pool.submit(store.render, recipe, None, machine="m", engine=lambda: asked.append(1) or engine)
            assert looked.wait(60)  # it is not there yet
            store._made(recipe, None, "m", engine)
        assert other.result(60).seconds == 1.0
    assert asked == []
