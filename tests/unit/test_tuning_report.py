"""The report of a sweep: right words, no markup from users, nothing from elsewhere, and a browser that plays it."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from rich.console import Console

from html_tags import Tags  # tests/html_tags.py
from sakuga.errors import SweepError
from sakuga.media.lossless import write_lossless
from sakuga.tuning.charts import Mark, front_svg, levels_svg
from sakuga.tuning.effects import effects
from sakuga.tuning.report import recommendation, table, write_report
from sakuga.tuning.space import trial_id
from sakuga.tuning.sweepfile import parse_sweep
from sakuga.tuning.trials import DONE, FAILED, CaseFigures, SweepFolder, TrialResult

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = '"><script>document.title = "evil"</script><img src=x onerror=alert(1)>'
SWEEP = parse_sweep(
    {"name": "s", "kind": "inference", "space": {"num_inference_steps": [4, 8, 20], "guidance_scale": [1, 5]},
     "evaluation": {"synth": "fairy"}, "objectives": ["ref_ssim", "seconds"]}
)  # fmt: skip


def _results(folder):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    folder.renders.mkdir(parents=True)
    for name in ("ref0", "ref1"):
        write_lossless(folder.renders / f"{name}.mkv", frames, 15)
    for steps in (4, 8, 20):
        for guidance in (1, 5):
            point = {"num_inference_steps": steps, "guidance_scale": guidance}
            name = trial_id(point)
            rows = []
            for case in range(3):
                ssim = 1 - 1 / steps + 0.01 * case + 0.001 * rng.normal()
                figures = {"ref_ssim": ssim, "seconds": steps * guidance / 10, "reference_seconds": 4.0}
                rows.append(
                    CaseFigures(name=f"c{case}", figures=figures, render_key=name, reference_key=f"ref{case % 2}")
                )
            write_lossless(folder.renders / f"{name}.mkv", frames, 15)
            means = {key: float(np.mean([row.figures[key] for row in rows])) for key in rows[0].figures}
            means["speedup"] = 4.0 / means["seconds"]
            folder.write(TrialResult(id=name, point=point, state=DONE, figures=means, rows=tuple(rows)))
    folder.write(TrialResult(id="bad", point={"num_inference_steps": 4}, state=FAILED, reason=f"E_MEMORY: {EVIL}"))


@pytest.fixture
def folder(tmp_path):
    made = SweepFolder(tmp_path / "s")
    made.create(SWEEP)
    _results(made)
    return made


def test_the_recommendation_names_the_trial_its_figures_and_what_mattered(folder):
    results = folder.results()
    told = recommendation(SWEEP, results, effects(results, SWEEP.parameters, SWEEP.objectives))
    assert re.match(r"Take [0-9a-f]{8}: steps 8, guidance 1\. It reached ref_ssim 0\.88\d* ± 0\.02\d*, seconds 0\.8, "
                    r"5\.00 times as fast as the reference\.", told[0])  # fmt: skip
    assert any(sentence.startswith("For ref_ssim alone take") for sentence in told)
    assert any("num_inference_steps moves ref_ssim: best at 20" in sentence for sentence in told)
    assert not any("guidance_scale moves ref_ssim" in sentence for sentence in told)


def test_the_page_is_self_contained_and_escapes_what_users_wrote(folder):
    seen = Tags(write_report(folder).read_text())
    assert len([tag for tag, _ in seen.tags if tag == "script"]) == 1
    assert not any("onerror" in attrs for _, attrs in seen.tags)
    sources = [attrs["src"] for _, attrs in seen.tags if "src" in attrs]
    assert sources and all(source.startswith("data:video/mp4;base64,") for source in sources)
    assert not any("href" in attrs for _, attrs in seen.tags)
    assert sum(EVIL in text for text in seen.text) == 1


def test_the_table_fits_a_terminal(folder):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(folder))
    text = console.export_text()
    assert "6 done, 1 failed" in text and "★" in text and "E_MEMORY" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_sweep_without_results_says_why(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    folder.create(SWEEP)
    folder.write(TrialResult(id="bad", point={}, state=FAILED, reason="E_MEMORY: too large"))
    with pytest.raises(SweepError, match=r"no trial reported ref_ssim, seconds .*E_MEMORY: too large"):
        write_report(folder)


def test_charts_bear_equal_and_single_values():
    mark = Mark(x=1.0, y=0.0, label="a", tooltip="t", kind="chosen", y_half_width=0.0)
    assert front_svg([mark], "x", "y").count("<circle") == 1
    assert levels_svg([("a", 0.0, None)], higher_is_better=True).count("<circle") == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_page(folder, tmp_path):
    page = write_report(folder)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chrome'}"]
    probe = tmp_path / "probe.html"
    script = """<script>addEventListener("load", () => { document.getElementById("play").click(); setTimeout(() => {
        const videos = [...document.querySelectorAll("video")];
        document.title = videos.filter(v => v.videoWidth === 32 && !v.paused).length + "/" + videos.length +
            (document.documentElement.scrollWidth > innerWidth ? " too wide" : "");
        }, 1500) })</script></body>"""
    probe.write_text(page.read_text().replace("</body>", script))
    run = subprocess.run(
        [*command, "--window-size=400,800", "--virtual-time-budget=4000", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    shown = re.search(r"<title>(\d+)/(\d+)(.*)</title>", run.stdout)
    assert shown and shown[1] == shown[2] and int(shown[1]) >= 6 and not shown[3], shown
