"""One pair, files and folders: what is matched, what is named, and what a failure leaves standing."""

import json
import math

import numpy as np
import pytest

from sakuga.errors import InputError, VideoError
from sakuga.media import read_video, write_mp4
from sakuga.quality import evaluate_pair, evaluate_paths, weighted_total


def clip(seed: int, num_frames: int = 5, height: int = 48, width: int = 64) -> np.ndarray:
    """A few coloured blocks that jump from frame to frame: cheap, and it survives a codec."""
    blocks = np.random.default_rng(seed).integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def put(folder, videos: dict[str, np.ndarray], fps: float = 15):
    folder.mkdir(exist_ok=True)
    for name, frames in videos.items():
        write_mp4(folder / name, frames, fps)
    return folder


def test_the_articles_total():
    assert weighted_total(20, psnr_db=50, ssim=1) == 1.0
    assert weighted_total(0, psnr_db=0, ssim=0) == 0.0
    assert weighted_total(16, psnr_db=30, ssim=0.9) == pytest.approx(0.4 + 0.15 + 0.225)
    assert weighted_total(10, psnr_db=100, ssim=1) == pytest.approx(0.25 + 0.5 + 0.25)


@pytest.mark.parametrize(
    "wrong", [(-1, 30, 0.9), (21, 30, 0.9), (math.nan, 30, 0.9), (10, math.inf, 0.9), (10, 30, 1.1), (10, 30, math.nan)]
)
def test_a_total_of_impossible_scores_is_refused(wrong):
    with pytest.raises(InputError):
        weighted_total(*wrong)


def test_a_pair_has_every_figure(seed):
    ref, gen = clip(seed), clip(seed + 1)
    report = evaluate_pair(ref, gen)
    assert report.notes == ()
    assert all(value is not None and math.isfinite(value) for value in report.figures().values())
    told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert told["psnr_db"] == report.psnr.mean_db and (told["width"], told["height"], told["num_frames"]) == (64, 48, 5)
    assert told["vmaf_model"] == "vmaf_v0.6.1"
    assert {name: len(values) for name, values in told["per_frame"].items()} == dict.fromkeys(
        ("psnr_db", "ssim", "vmaf", "xpsnr_y_db", "drift", "identity"), 5
    )
    assert report.motion_ratio == report.gen.motion / report.ref.motion


def test_a_frozen_render_is_exposed_by_its_motion_beside_a_perfect_flicker(seed):
    ref = clip(seed)
    figures = evaluate_pair(ref, np.stack([ref[0]] * len(ref))).figures()
    assert figures["flicker"] == 0.0
    assert figures["motion"] == figures["motion_ratio"] == 0.0
    assert figures["frozen_share"] == 1.0
    assert evaluate_pair(ref[[0] * 5], ref).motion_ratio is None


def test_one_frame_and_small_frames_leave_gaps_with_reasons(seed):
    one = evaluate_pair(clip(seed)[:1], clip(seed)[:1])
    assert one.vmaf is not None and one.gen.motion is None and one.motion_ratio is None
    small = evaluate_pair(clip(seed, height=8), clip(seed, height=8))
    assert small.ssim is None and small.vmaf is None and small.xpsnr is not None and small.gen.flicker is None
    assert [note.partition(":")[0] for note in small.notes] == ["ssim", "vmaf"]
    json.dumps(small.as_dict(), allow_nan=False)


def test_two_files_are_compared_under_any_names(tmp_path, seed):
    put(tmp_path, {"target.mp4": clip(seed), "render.mp4": clip(seed + 1)})
    report = evaluate_paths(tmp_path / "target.mp4", str(tmp_path / "render.mp4"))
    ((name, measured),) = report.rows
    assert name == "render"
    expected = evaluate_pair(read_video(tmp_path / "target.mp4"), read_video(tmp_path / "render.mp4"))
    assert measured == expected
    assert report.mean() == expected.figures()


def test_folders_are_matched_by_stem_and_the_rest_is_named(tmp_path, seed):
    ref = put(tmp_path / "ref", {"a.mp4": clip(seed), "b.mp4": clip(seed + 1), "lonely.mp4": clip(seed)})
    gen = put(tmp_path / "gen", {"b.mp4": clip(seed + 1), "a.mp4": clip(seed + 2), "extra.mp4": clip(seed)})
    (gen / "a.json").write_text("{}")
    (gen / ".b.mkv").write_bytes(b"left over by a copy")
    (ref / "a.webp").write_bytes(b"thumbnail")
    (ref / "deep").mkdir()
    result = evaluate_paths(ref, gen)
    assert [row.name for row in result.rows] == ["a", "b"]
    assert (result.only_in_ref, result.only_in_gen, result.failures) == (("lonely",), ("extra",), ())
    first, second = (row.report.psnr.mean_db for row in result.rows)
    assert second == 100.0 and first < 20
    mean = result.mean()
    assert mean["psnr_db"] == pytest.approx((first + second) / 2)
    assert mean["motion_ratio"] == pytest.approx(mean["motion"] / mean["ref_motion"])
    told = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert [row["name"] for row in told["rows"]] == ["a", "b"]
    assert told["only_in_ref"] == ["lonely"] and told["mean"]["psnr_db"] == result.mean()["psnr_db"]


def test_a_bad_pair_of_a_folder_fails_alone(tmp_path, seed):
    videos = {"good.mp4": clip(seed), "longer.mp4": clip(seed), "text.mp4": clip(seed)}
    ref = put(tmp_path / "ref", videos)
    gen = put(tmp_path / "gen", {**videos, "longer.mp4": clip(seed, num_frames=8)})
    (gen / "text.mp4").write_text("not a video")
    result = evaluate_paths(ref, gen)
    assert [row.name for row in result.rows] == ["good"]
    assert [(failure.name, failure.code) for failure in result.failures] == [("longer", "E_VIDEO"), ("text", "E_VIDEO")]
    assert "5 frames" in result.failures[0].message and "8" in result.failures[0].message
    assert "text.mp4" in result.failures[1].message
    assert [failed["name"] for failed in result.as_dict()["failed"]] == ["longer", "text"]


def test_what_cannot_be_compared_says_what_to_do(tmp_path, seed):
    ref = put(tmp_path / "ref", {"a.mp4": clip(seed)})
    gen = put(tmp_path / "gen", {"b.mp4": clip(seed), "c.mp4": clip(seed, num_frames=3)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.mp4").write_text("hello")
    cases = {
        (ref, gen): "'a'.*'b', 'c'.*without suffix",
        (ref, tmp_path / "empty"): "no videos",
        (ref, gen / "b.mp4"): "a file and a folder",
        (ref, tmp_path / "missing"): "missing.*does not exist",
        (ref / "a.mp4", tmp_path / "note.mp4"): "note.mp4",
        (ref / "a.mp4", gen / "c.mp4"): "5 frames .* 3",
    }
    for (one, other), said in cases.items():
        with pytest.raises(InputError, match=said):
            evaluate_paths(one, other)


def test_two_videos_of_one_name_in_a_folder_are_refused(tmp_path, seed):
    ref = put(tmp_path / "ref", {"a.mp4": clip(seed), "a.mov": clip(seed)})
    with pytest.raises(VideoError, match=r"a\.mov.*a\.mp4"):
        evaluate_paths(ref, ref)


def test_other_frame_rates_are_told(tmp_path, seed):
    put(tmp_path, {"slow.mp4": clip(seed)}, fps=15)
    put(tmp_path, {"fast.mp4": clip(seed)}, fps=30)
    ((_, report),) = evaluate_paths(tmp_path / "slow.mp4", tmp_path / "fast.mp4").rows
    assert any("15 and 30" in note for note in report.notes)
