"""The cost model's seconds: evaluations, the fit to published and measured renders, ranks, memory plans, devices.

Run: pytest tests/unit/test_cost.py
"""

import subprocess
import sys
from dataclasses import replace

import pytest

from cost_cases import GB, plan_of, recipe_of
from sakuga.cost import DEVICES, DeviceSpec, estimate, find_device
from sakuga.cost.devices import CPU, fit_efficiencies, known_gpu
from sakuga.cost.work import Work, encode_work, evaluation_work, num_evaluations, num_tokens, tiles, vae_work
from sakuga.engine.schedule import noise_levels
from sakuga.errors import DeviceError
from sakuga.recipe import Tiling
from sakuga.wan.catalogue import card


def test_tiles_are_those_that_diffsynth_lays():
    entry = card("wan2.1-i2v-14b-720p")
    laid = tiles(entry, 1280, 720, Tiling())
    assert len(laid) == 6 * 5  # 160 x 90 latent pixels: columns begin at 0, 26 .. 130, rows at 0, 15 .. 60
    assert max(laid) == (416, 240)
    assert tiles(entry, 256, 128, Tiling()) == [(256, 128)]
    assert vae_work(entry, "decode", 1280, 720, 81, Tiling()).flops > vae_work(entry, "decode", 1280, 720, 81).flops


def test_evaluations_are_counted_by_step_and_guidance():
    recipe, entry = recipe_of("wan2.2-i2v-a14b", "input_image"), card("wan2.2-i2v-a14b")
    assert num_evaluations(recipe, entry) == (0, 40)
    assert num_evaluations(replace(recipe, guidance_scale=1, guidance_scale_2=None), entry) == (40, 0)
    half = replace(recipe, guidance_scale=1, guidance_scale_2=3.5)
    sigmas = noise_levels(40, shift=recipe.flow_shift)[:-1]
    num_low = int((sigmas < entry.boundary_ratio).sum())
    assert 0 < num_low < 40
    assert num_evaluations(half, entry) == (40 - num_low, num_low)


def test_inputs_add_to_tokens_and_encoding():
    entry = card("wan2.1-fun-v1.1-control-14b")
    plain, more = (recipe_of(entry.name, "control_video", *rest) for rest in ((), ("reference_image",)))
    assert num_tokens(more, entry) - num_tokens(plain, entry) == entry.width // 16 * (entry.height // 16)
    assert encode_work(more, entry, guided=True).flops > encode_work(plain, entry, guided=True).flops
    vace = card("wan2.1-vace-14b")
    of = lambda *roles: estimate(recipe_of(vace.name, *roles), vace, plan_of(), DEVICES["h200"])
    assert of("vace_video").denoise_s > 1.15 * of().denoise_s  # 8 more blocks beside 40


# LightX2V's published seconds for Wan2.1-I2V-14B in bf16, 81 frames, one H200: 40 steps with guidance, 4 steps without.
H200 = {(832, 480): (216.0, 14.0), (1280, 720): (751.0, 44.0)}


def _published() -> list[tuple[Work, float]]:
    """Seconds of one evaluation: 80 and 4 of them, and the same encoder and decoder."""
    samples = []
    for (width, height), (guided_s, distilled_s) in H200.items():
        rest, blocks = evaluation_work(card("wan2.1-i2v-14b-720p"), tokens=21 * width * height // 256, text_tokens=512)
        samples.append((rest + blocks, (guided_s - distilled_s) / 76))
    return samples


def test_constants_are_the_fit():
    device = DEVICES["h200"]
    linear, attention = fit_efficiencies(_published(), device.matmul_flops, attention_efficiency=0.75)
    assert (device.linear_efficiency, device.attention_efficiency) == (pytest.approx(linear, abs=0.005), attention)


@pytest.mark.parametrize("left_out", [0, 1])
def test_fit_to_one_size_predicts_the_other(left_out):
    """Within 10 %: the numbers are others' and rounded, and attention's share goes from a half to three quarters."""
    samples, device = _published(), DEVICES["h200"]
    work, seconds = samples.pop(left_out)
    linear, attention = fit_efficiencies(samples, device.matmul_flops, attention_efficiency=0.75)
    predicted = replace(device, linear_efficiency=linear, attention_efficiency=attention).seconds(work, "bf16")
    assert predicted == pytest.approx(seconds, rel=0.1)


def test_fit_finds_what_made_the_samples():
    made = replace(DEVICES["h100"], linear_efficiency=0.4, attention_efficiency=0.7)
    works = [Work(linear_flops=3e15, attention_flops=1e15), Work(linear_flops=1e15, attention_flops=4e15)]
    fitted = fit_efficiencies([(work, made.seconds(work, "bf16")) for work in works], made.matmul_flops)
    assert fitted == pytest.approx((0.4, 0.7))


@pytest.mark.parametrize(("size", "published_s"), H200.items())
def test_whole_renders_on_an_h200(size, published_s):
    recipe = recipe_of("wan2.1-i2v-14b-720p", "input_image", width=size[0], height=size[1])
    for seconds, fields in zip(published_s, ({}, {"num_inference_steps": 4, "guidance_scale": 1}), strict=True):
        told = estimate(replace(recipe, **fields), card(recipe.model), plan_of(), DEVICES["h200"])
        assert told.total_s == pytest.approx(seconds, rel=0.1)
        assert told.measured


@pytest.mark.parametrize(
    ("execution", "published_step_s"), [(plan_of(), 5.18), (plan_of(cfg=2, ulysses=4), 0.75)], ids=["1 GPU", "8 GPUs"]
)
def test_h100_was_not_used_for_the_fit(execution, published_step_s):
    """LightX2V's README, Wan2.1-I2V-14B at 480p, 40 steps: 5.18 s a step on one H100, 0.75 s on eight."""
    recipe = recipe_of("wan2.1-i2v-14b-480p", "input_image")
    told = estimate(recipe, card(recipe.model), execution, DEVICES["h100"])
    assert told.step_s == pytest.approx(published_step_s, rel=0.1)


MINI_STEP_S = {(64, 64, 9): 0.0267, (128, 128, 33): 0.1978, (256, 128, 33): 0.4862, (256, 256, 33): 1.397}
"""One thread, 104 GFLOP/s; see `cost.devices.CPU`."""


@pytest.mark.parametrize(("size", "measured_s"), MINI_STEP_S.items())
def test_steps_of_the_mini_on_a_cpu(size, measured_s):
    device = replace(CPU, matmul_flops=104e9, fp32_flops=104e9)
    recipe = recipe_of("wan-mini", **dict(zip(("width", "height", "num_frames"), size, strict=True)))
    assert estimate(recipe, card("wan-mini"), plan_of(), device).step_s == pytest.approx(measured_s, rel=0.1)


def test_memory_of_the_published_render():
    """57 GB on an H200 in bf16 at 720p, by another engine; what the driver counts of CUDA's own is in it."""
    told = estimate(recipe_of(), card("wan2.1-i2v-14b-720p"), plan_of(), DEVICES["h200"])
    assert told.peak_bytes == pytest.approx(57 * GB, rel=0.1)


def test_precisions_and_plans_change_what_they_should():
    recipe, entry, device = recipe_of(), card("wan2.1-i2v-14b-720p"), DEVICES["h200"]
    whole = estimate(recipe, entry, plan_of(), device)
    fp32 = estimate(recipe, entry, plan_of(), device, precision="fp32")
    int8 = estimate(recipe, entry, plan_of(), device, precision="int8")
    assert fp32.parts[0].total_bytes == 4 * entry.num_params == 2 * whole.parts[0].total_bytes
    assert int8.parts[0].total_bytes == pytest.approx(entry.num_params, rel=0.03)
    assert int8.denoise_s == whole.denoise_s
    assert fp32.denoise_s > 10 * whole.denoise_s
    cached = estimate(recipe, entry, plan_of(), device, block_share=0.5)
    assert cached.denoise_s == pytest.approx(whole.denoise_s / 2, rel=0.01)
    assert cached.num_evaluations == whole.num_evaluations == 80
    both = estimate(recipe, entry, plan_of(cfg=2), device)
    assert whole.denoise_s / 2 < both.denoise_s < 0.51 * whole.denoise_s
    assert both.device_seconds > whole.device_seconds  # encode and decode are one rank's, the other waits
    assert both.peak_bytes == whole.peak_bytes
    four = estimate(recipe, entry, plan_of(ulysses=2, ring=2), device)
    assert four.stages[1].work_bytes < 0.6 * whole.stages[1].work_bytes
    assert 0 < four.exchange_s < four.denoise_s / 4


def test_weights_on_their_way_take_time():
    recipe, entry = recipe_of(num_frames=1), card("wan2.1-i2v-14b-720p")
    told = {memory: estimate(recipe, entry, plan_of(memory), DEVICES["rtx4090"]) for memory in
            ("resident", "components", "layers:0", "disk")}  # fmt: skip
    assert told["resident"].transfer_s == 0
    seconds = [one.total_s for one in told.values()]
    assert seconds == sorted(seconds)
    # A still of 3,600 tokens: the blocks of 14B come more slowly than they are computed with.
    assert told["layers:0"].step_s == pytest.approx(2 * 32e9 / 25e9, rel=0.1)


def test_devices_are_found_by_names_people_use():
    assert find_device("H200").memory_bytes == 141 * GB
    assert find_device("RTX 4090") == find_device("4090") == DEVICES["rtx4090"]
    assert known_gpu("NVIDIA GeForce RTX 5090") == DEVICES["rtx5090"]
    assert known_gpu("NVIDIA A100-SXM4-80GB") == DEVICES["a100"]
    assert known_gpu("Tesla T4") is None
    with pytest.raises(DeviceError, match="did you mean 'h200'"):
        find_device("h20")


def test_this_machine_is_measured():
    here = DeviceSpec.here()
    assert here.matmul_flops == here.fp32_flops > 1e8
    assert here.memory_bytes > 10**8
    told = estimate(recipe_of("wan-mini"), card("wan-mini"), plan_of(), here)
    assert told.total_s > 0
    assert told.fits


def test_cost_model_needs_no_torch():
    """A scheduler asks it; it must not pay for an engine."""
    heavy = ("torch", "ray", "diffsynth", "numpy")
    script = f"import sys, sakuga.cost; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_driver_s_name_is_taken_for_the_right_card(title, name):
    found = known_gpu(title)
    assert found is (DEVICES[name] if name else None)


def test_eight_of_a_gpu_are_a_plan_and_no_gpu():
    with pytest.raises(DeviceError, match="say with --cfg, --ulysses and --ring on how many"):
        find_device("8xh100")
