"""Learned metrics with tiny random weights from local files: known answers, and one sentence for what is not theirs."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import alexnet

from sakuga.errors import InputError, MetricError, WeightsError
from sakuga.quality.learned import LPIPS_WIDTHS, frechet_distance, load_metric, load_metrics
from sakuga.quality.report import Case, report_on


def clip(seed: int, num_frames: int = 3, side: int = 48) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (num_frames, side // 8, side // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def noisy(video: np.ndarray, spread: int) -> np.ndarray:
    step = np.random.default_rng(spread).integers(-spread, spread + 1, video.shape)
    return np.clip(video.astype(int) + step, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def lpips_weights():
    torch.manual_seed(3)
    with torch.device("meta"):
        shapes = {f"features.{key}": value.shape for key, value in alexnet(weights=None).features.state_dict().items()}
    features = {key: torch.randn(shape) / max(1, shape[1:].numel()) ** 0.5 for key, shape in shapes.items()}
    return features | {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(LPIPS_WIDTHS)}


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory, lpips_weights):
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(lpips_weights, path)
    return path


def test_lpips_of_equal_videos_is_0_and_rises_with_noise(lpips_file, seed):
    metric, video = load_metric(f"lpips={lpips_file}"), clip(seed)
    assert metric.of_case(video, video, None) == 0.0
    distances = [metric.of_case(noisy(video, spread), video, None) for spread in (4, 20, 80)]
    assert distances == sorted(distances) and distances[0] > 0
    assert metric.of_case(video, noisy(video, 20), None) == pytest.approx(distances[1], rel=1e-5)
    assert metric.of_case(video, None, None) is None


def test_lpips_is_the_formula(lpips_file, lpips_weights):
    """Written out a second time for the first tap: unit channels, squared difference, weights, mean over the place."""
    one, other = clip(1, num_frames=1), clip(2, num_frames=1)
    only_first = {
        key: (value if "lin0" in key or "lin" not in key else value * 0) for key, value in lpips_weights.items()
    }
    save_file(only_first, lpips_file.with_name("first.safetensors"))
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])

    def tap(video):
        scaled = torch.tensor(((video[0] / 127.5 - 1) - shift) / scale).permute(2, 0, 1)[None].float()
        weight, bias = lpips_weights["features.0.weight"], lpips_weights["features.0.bias"]
        seen = torch.conv2d(scaled, weight, bias, stride=4, padding=2).relu()[0]
        return (seen / seen.norm(dim=0, keepdim=True)).nan_to_num()

    wanted = ((tap(one) - tap(other)) ** 2 * lpips_weights["lin0.model.1.weight"][0]).sum(0).mean()
    measured = load_metric(f"lpips={lpips_file.with_name('first.safetensors')}").of_case(one, other, None)
    assert measured == pytest.approx(float(wanted), rel=1e-4)


def test_lpips_takes_the_packages_own_names(lpips_file, lpips_weights, tmp_path, seed):
    slices = {"0": 1, "3": 2, "6": 3, "8": 4, "10": 5}
    renamed = {}
    for key, value in lpips_weights.items():
        part = key.split(".")
        renamed[f"net.slice{slices[part[1]]}.{part[1]}.{part[2]}" if part[0] == "features" else key] = value
    torch.save(renamed | {"scaling_layer.shift": torch.zeros(1)}, tmp_path / "lpips.pth")
    theirs, ours = load_metric(f"lpips={tmp_path / 'lpips.pth'}"), load_metric(f"lpips={lpips_file}")
    assert theirs.of_case(clip(seed), clip(seed + 1), None) == ours.of_case(clip(seed), clip(seed + 1), None)


def test_lpips_of_too_small_frames_is_a_note(lpips_file, seed):
    small = clip(seed, side=24)
    with pytest.raises(MetricError, match="32 pixels"):
        load_metric(f"lpips={lpips_file}").of_case(small, small, None)
    report = report_on([Case(name="a", gen=small, target=small)], learned=[load_metric(f"lpips={lpips_file}")])
    assert "lpips" not in report.rows[0].figures
    assert any(note.startswith("lpips: ") for note in report.rows[0].notes)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    torch.manual_seed(3)
    CLIPModel(config).save_pretrained(folder)
    image = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=image, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_clip_is_a_cosine_of_frames_and_prompt(clip_folder, seed):
    metric, video = load_metric(f"clip={clip_folder}"), clip(seed, num_frames=20)
    one, other = metric.of_case(video, None, "a fairy"), metric.of_case(video, None, "a dancer " * 40)
    assert -1 <= one <= 1 and one != other
    by_frame = [metric.of_case(video[t : t + 1], None, "a fairy") for t in range(20)]
    assert one == pytest.approx(np.mean(by_frame), abs=1e-5)
    assert metric.of_case(video, video, None) is None
    assert metric.of_case(video, video, "") is None


class Moments(torch.nn.Module):
    """An I3D whose features can be computed by hand."""

    def forward(self, video, rescale: bool, resize: bool, return_features: bool):
        return torch.stack([video.mean(), video.std()])[None]


@pytest.fixture(scope="module")
def fvd_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fvd") / "i3d.pt"
    torch.jit.script(Moments()).save(str(path))
    return path


def test_the_frechet_distance_of_known_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2 where both have the same axes; corners of a square have these moments exactly."""
    corners = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(3 / 4)  # sample variance 1
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    one, other = corners * [1, 2] @ turn, (corners * [3, 5] + [4, 0]) @ turn
    assert frechet_distance(one, other) == pytest.approx(4**2 + (3 - 1) ** 2 + (5 - 2) ** 2, abs=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)
    rank_1 = np.array([[0.0, 0, 0], [1, 1, 1]])
    assert frechet_distance(rank_1, rank_1 + 2) == pytest.approx(12.0, abs=1e-9)


def test_fvd_of_equal_sets_is_0_and_few_videos_are_told(fvd_file, seed):
    cases = [Case(name=str(n), gen=clip(seed + n), target=clip(seed + n)) for n in range(4)]
    report = report_on([*cases, Case(name="alone", gen=clip(seed))], learned=[load_metric(f"fvd={fvd_file}")])
    assert report.of_set["fvd"] == pytest.approx(0.0, abs=1e-6)
    assert report.notes[0].startswith("fvd: 4 videos; below 256")
    assert "fvd" not in report.rows[0].figures


def test_fvd_is_the_distance_of_the_features(fvd_file, seed):
    metric = load_metric(f"fvd={fvd_file}")
    pairs = [(clip(seed + n), noisy(clip(seed + n + 9), 60)) for n in range(3)]
    for gen, target in pairs:
        assert metric.of_case(gen, target, None) is None
    by_hand = [np.array([[v.mean(), v.std(ddof=1)] for v in side]) for side in zip(*pairs, strict=True)]
    assert metric.of_set()[0] == pytest.approx(frechet_distance(*by_hand), rel=1e-3)


def test_fvd_of_one_video_is_no_distance(fvd_file, seed):
    report = report_on([Case(name="a", gen=clip(seed), target=clip(seed))], learned=[load_metric(f"fvd={fvd_file}")])
    assert report.of_set == {}
    assert "needs two" in report.notes[0]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("lpips", "NAME=PATH"),
        ("lpips=", "NAME=PATH"),
        ("lpip=x", "did you mean 'lpips'"),
        ("vbench=x", "lpips, clip, fvd"),
    ],
)
def test_a_metric_that_is_none_is_named(spec, said):
    with pytest.raises(InputError, match=said):
        load_metric(spec)


def test_a_metric_twice_is_refused(lpips_file):
    with pytest.raises(InputError, match="lpips, lpips: give each metric once"):
        load_metrics([f"lpips={lpips_file}"] * 2)


def test_a_metric_that_met_no_case_says_so(lpips_file, clip_folder, seed):
    learned = load_metrics([f"lpips={lpips_file}", f"clip={clip_folder}"])
    report = report_on([Case(name="alone", gen=clip(seed))], learned=learned)
    assert [note.partition(":")[0] for note in report.notes] == ["lpips", "clip"]
    full = report_on([Case(name="a", gen=clip(seed), reference=clip(seed), prompt="a fairy")], learned=learned)
    assert full.notes == () and {"lpips", "clip"} <= set(full.rows[0].figures)


def test_weights_that_are_not_there_or_not_theirs_are_one_sentence(tmp_path, lpips_weights, clip_folder):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    wrong_shape = lpips_weights | {"lin4.model.1.weight": torch.zeros(1, 9, 1, 1)}
    save_file(wrong_shape, tmp_path / "shape.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    (damaged / "model.safetensors").write_text("hello")
    halved = shutil.copytree(clip_folder, tmp_path / "halved")
    whole = load_file(halved / "model.safetensors")
    save_file(
        {key: value for key, value in whole.items() if "text" in key}, halved / "model.safetensors", {"format": "pt"}
    )
    cases = {
        "lpips=missing.pth": "does not exist",
        "lpips=other.safetensors": r"15 of 15 tensors .*'features.0.weight'",
        "lpips=shape.safetensors": r"1 of 15 tensors .*'lin4.model.1.weight'",
        "lpips=list.pth": "no state dict",
        "lpips=text.pth": "cannot be read as weights",
        "lpips=text.safetensors": "cannot be read as weights",
        "clip=missing": "no folder",
        "clip=empty": "no CLIP",
        "clip=damaged": "no CLIP",
        "clip=halved": "no whole CLIP",
        "fvd=missing.pt": "does not exist",
        "fvd=text.pth": "no TorchScript",
    }
    for spec, said in cases.items():
        name, _, path = spec.partition("=")
        with pytest.raises(WeightsError, match=said) as caught:
            load_metric(f"{name}={tmp_path / path}")
        assert caught.value.code == "E_WEIGHTS"
        assert "\n" not in caught.value.message


def test_an_i3d_of_another_form_is_one_sentence(tmp_path, seed):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "linear.pt"))
    with pytest.raises(MetricError, match="did not take a video"):
        load_metric(f"fvd={tmp_path / 'linear.pt'}").of_case(clip(seed), clip(seed), None)
