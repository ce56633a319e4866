"""A set of renders: what every case has, means with intervals, what fails alone, and prompts by name."""

import json

import numpy as np
import pytest
import scipy.stats

from sakuga.errors import ManifestError, SakugaError
from sakuga.media import write_mp4
from sakuga.quality import evaluate_paths, weighted_total
from sakuga.quality.report import Case, interval, read_prompts, report_of_pairs, report_on


def clip(seed: int, num_frames: int = 4) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (num_frames, 6, 6, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def frozen(seed: int) -> np.ndarray:
    return np.repeat(clip(seed, 1), 4, axis=0)


def test_a_case_alone_and_one_with_everything(seed, tmp_path):
    write_mp4(tmp_path / "a.mp4", clip(seed), 15)
    cases = [
        Case(name="alone", gen=clip(seed), prompt="a cat"),
        Case(name="file", gen=tmp_path / "a.mp4", reference=clip(seed), target=clip(seed + 1)),
    ]
    report = report_on(iter(cases))
    alone, full = report.rows
    assert {"flicker", "motion", "warp_error", "drift", "drift_slope", "identity", "identity_min"} <= set(alone.figures)
    assert not {"psnr_db", "ref_psnr_db", "adherence"} & set(alone.figures)
    assert "no hair colour" in alone.notes[0]
    assert full.figures["ref_psnr_db"] > full.figures["psnr_db"]
    assert {name: len(curve) for name, curve in full.per_frame.items()} == {"drift": 4, "identity": 4}
    told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert told["num_cases"] == 2 and told["rows"][1]["figures"] == full.figures
    assert told["mean"]["psnr_db"] == {
        "mean": full.figures["psnr_db"], "low": None, "high": None, "num_cases": 1,
    }  # fmt: skip


def test_intervals_are_students(seed):
    values = np.random.default_rng(seed).normal(5, 2, 7).tolist()
    found = interval(values)
    wanted = scipy.stats.t.interval(0.95, 6, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx(wanted)
    assert interval([3.0, 3.0]).low == interval([3.0, 3.0]).high == 3.0
    assert (interval([3.0]).low, interval([3.0]).num_cases) == (None, 1)


def test_a_ratio_is_that_of_the_means(seed):
    """The case whose reference hardly moves has a ratio of its own of anything; here of nothing at all."""
    cases = [Case(name=str(n), gen=clip(seed + n), reference=clip(seed + n)) for n in range(3)]
    cases.append(Case(name="still", gen=clip(seed + 9), reference=frozen(seed)))
    report = report_on(cases)
    motion = report.means()["motion_ratio"]
    assert "motion_ratio" not in report.rows[3].figures
    moved = [row.figures["motion"] for row in report.rows]
    assert motion.mean == pytest.approx(sum(moved) / sum(moved[:3]))
    assert motion.low is not None and motion.low < motion.mean < motion.high
    assert motion.num_cases == 4
    assert "motion_ratio" not in report_on([Case(name="a", gen=frozen(seed), reference=frozen(seed))]).means()


def test_a_bad_case_fails_alone(seed, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    cases = [
        Case(name="text", gen=tmp_path / "text.mp4"),
        Case(name="good", gen=clip(seed)),
        Case(name="short", gen=clip(seed, 3), target=clip(seed)),
        Case(name="missing", gen=clip(seed), reference=tmp_path / "missing.mp4"),
    ]
    report = report_on(cases)
    assert [row.name for row in report.rows] == ["good"]
    assert [(f.name, f.code) for f in report.failures] == [(n, "E_VIDEO") for n in ("text", "short", "missing")]
    assert [f["name"] for f in report.as_dict()["failed"]] == ["text", "short", "missing"]
    assert report_on([]).means() == {}


def test_people_bring_the_weighted_total(seed):
    cases = [
        Case(name="a", gen=clip(seed), target=clip(seed)),
        Case(name="b", gen=clip(seed), reference=clip(seed + 1)),
        Case(name="c", gen=clip(seed)),
        Case(name="d", gen=clip(seed), target=clip(seed)),
    ]
    rows = report_on(cases, subjective={"a": 16.0, "b": 8.0, "c": 4.0}).rows
    assert rows[0].figures["weighted_total"] == weighted_total(16.0, 100.0, 1.0)
    b = rows[1].figures
    assert b["weighted_total"] == weighted_total(8.0, b["ref_psnr_db"], b["ref_ssim"])
    assert rows[2].figures["subjective"] == 4.0 and "weighted_total" not in rows[2].figures
    assert "subjective" not in rows[3].figures


def test_pairs_become_a_set(seed, tmp_path):
    for folder in ("ref", "gen"):
        (tmp_path / folder).mkdir()
        for n in range(2):
            write_mp4(tmp_path / folder / f"{n}.mp4", clip(seed + n), 15)
    (tmp_path / "gen" / "2.mp4").write_text("no video")
    (tmp_path / "ref" / "2.mp4").write_text("no video")
    pairs = evaluate_paths(tmp_path / "ref", tmp_path / "gen", prompts={"0": "a cat"})
    report = report_of_pairs(pairs, subjective={"1": 20.0})
    means = report.means()
    assert means["psnr_db"].mean == pairs.mean()["psnr_db"] == 100.0
    assert (means["psnr_db"].num_cases, means["weighted_total"].num_cases) == (2, 1)
    assert means["motion_ratio"].mean == pytest.approx(1.0)
    assert any("no hair colour" in note for note in report.rows[0].notes)
    assert not report.rows[1].notes
    assert [failure.name for failure in report.failures] == ["2"]
    assert "adherence" in pairs.mean() and pairs.mean()["adherence"] is None


def test_prompts_are_read_by_the_name_of_their_video(tmp_path):
    rows = [{"video": "clips/a.b.mp4", "prompt": "one"}, {"id": "c.d", "prompt": "two"}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (tmp_path / "metadata.csv").write_text('video,prompt,seed\nx/a.mp4,"one,\ntwo",3\n', encoding="utf-8-sig")
    assert read_prompts(tmp_path / "p.jsonl") == {"a.b": "one", "c.d": "two"}
    assert read_prompts(tmp_path / "metadata.csv") == {"a": "one,\ntwo"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "{}\n", "line 1, has no `video`"),
        ("a.jsonl", '{"video": "a.mp4", "prompt": 3}\n', "line 1, has no"),
        ("a.jsonl", '{"video": "a.mp4", "prompt": "x"}\n{"vid', "line 2, is no JSON"),
        ("a.jsonl", "[1]\n", "line 1, is no object"),
        ("a.csv", "prompt\nx\n", "line 2, has no"),
        ("a.csv", "video,prompt\na.mp4,x\na.mov,y\n", "line 3: 'a' has two prompts"),
        ("a.jsonl", b"\xff\xfe", "cannot be read"),
        ("a.jsonl", None, "cannot be read"),
    ],
)
def test_prompts_that_cannot_be_used_are_told_with_their_line(name, text, said, tmp_path):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=said) as caught:
        read_prompts(tmp_path / name)
    assert isinstance(caught.value, SakugaError)
