"""The page of a run: nothing of a user's text is markup, nothing is loaded from elsewhere, and a browser plays it."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from html_tags import Tags  # tests/html_tags.py
from sakuga.farm.demo.page import Cut, Page, page_html
from sakuga.farm.demo.show import show
from sakuga.farm.results import RowResult, summarise, write_results
from sakuga.media import save_image, write_json_atomic, write_mp4

EVIL = '"><script>document.title = "evil"</script><img src=x onerror=alert(1)> {{7*7}} $title & \x1b[31m'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def cut(**more):
    figures = {"seed": 7, "num_inference_steps": 20, "width": 128, "height": 96, "num_frames": 33, "fps": 15.0}
    return Cut(**{"kind": "From words", "prompt": "a dance", "model": "wan-mini", **figures, **more})


def page(*cuts, sheet=None):
    return page_html(Page(title=EVIL, lead=EVIL, stats=((EVIL, EVIL),), cuts=cuts, contact_sheet=sheet, footer=EVIL))


def test_text_of_users_is_never_markup():
    text = page(
        cut(prompt=EVIL, kind=EVIL, model=EVIL, loras=(EVIL,), video="a.mp4", pictures=((EVIL, "inputs/a b%.png"),)),
        cut(error=f"E_IMAGE: {EVIL}"),
    )
    seen = Tags(text)
    assert len(seen.named("script")) == 1  # the page's own
    assert not any("onerror" in attrs for _, attrs in seen.tags)
    assert [attrs["src"] for attrs in seen.named("img")] == ["inputs/a%20b%25.png"]
    assert seen.named("video")[0]["aria-label"] == EVIL
    # title, h1, lead, two of a stat, footer; kind, prompt, model, LoRA, caption of the first cut; error of the second
    assert sum(part.count(EVIL) for part in seen.text) == 12


def test_everything_is_said_about_a_video():
    text = page(cut(video="a.mp4", poster="a.webp", receipt="a.json", seconds=6.53, loras=("fairy × 0.8",)))
    words = re.sub(r"<[^>]+>", " ", html.unescape(text))
    for words_of_it in (
        r"a dance",
        r"seed\s+7",
        r"steps\s+20",
        r"6\.5 s",
        r"128×96",
        r"2\.2 s",
        r"wan-mini",
        r"fairy × 0\.8",
    ):
        assert re.search(words_of_it, words), words_of_it
    video = Tags(text).named("video")[0]
    assert (video["src"], video["poster"], video["width"], video["height"]) == ("a.mp4", "a.webp", "128", "96")
    assert {"a.mp4", "a.json"} <= {attrs["href"] for attrs in Tags(text).named("a")}


def test_nothing_is_loaded_from_elsewhere():
    text = page(cut(video="a.mp4", pictures=(("from", "inputs/a.png"),)), sheet="contact_sheet.png")
    seen = Tags(text)
    assert not seen.named("link")
    assert "url(" not in text
    assert "@import" not in text
    addresses = [attrs[name] for _, attrs in seen.tags for name in ("src", "href", "poster") if attrs.get(name)]
    assert len(addresses) == 5
    assert not [address for address in addresses if re.match(r"[a-z]+:|/", address)]


def test_a_failed_video_shows_its_error_in_its_place():
    seen = Tags(page(cut(error="E_IMAGE: the picture is empty")))
    assert not seen.named("video")
    assert {"E_IMAGE", "the picture is empty"} <= set(seen.text)


@pytest.fixture
def run(tmp_path):
    """A folder as a run leaves it: one finished video with a tricky name and prompt, one failed row."""
    rows = [
        {"id": "a.b-ü", "prompt": EVIL.replace("\x1b", ""), "input_image": "inputs/a b#?.png", "loras": "fairy:0.5"},
        {"id": "bad", "prompt": "no", "seed": 0, "width": 160},
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frames = np.random.default_rng(0).integers(0, 255, (9, 96, 128, 3), np.uint8)
    (tmp_path / "inputs").mkdir()
    save_image(tmp_path / "inputs/a b#?.png", Image.fromarray(frames[0]))
    write_mp4(tmp_path / "a.b-ü.mp4", frames, 15)
    save_image(tmp_path / "a.b-ü.webp", Image.fromarray(frames[4]))
    figures = {"seed": 9, "num_inference_steps": 3, "width": 128, "height": 96, "num_frames": 9, "fps": 15}
    write_json_atomic(tmp_path / "a.b-ü.json", {"key": "k", "recipe": figures})
    results = [
        RowResult(
            row="a.b-ü",
            line=1,
            name="a.b-ü",
            status="done",
            video="a.b-ü.mp4",
            receipt="a.b-ü.json",
            seconds={"total": 6.0},
        ),
        RowResult(row="bad", line=2, name="bad", status="failed", error={"code": "E_LORA", "message": "no such LoRA"}),
    ]
    write_results(tmp_path, results)
    summary = summarise(results, num_rows=2, wall_s=12.0, num_workers=1, out=tmp_path)
    return tmp_path, manifest, summary


def test_page_and_sheet_of_a_run(run):
    out, manifest, summary = run
    sheet, index = show(out, manifest, summary)
    assert sheet is not None
    with Image.open(sheet) as image:
        assert image.height > 128
    seen = Tags(index.read_text("utf-8"))
    words = " ".join(seen.text)
    # The receipt's steps, whatever the manifest leaves open; the failed row's own width, its other figures the card's.
    for figure in ("fairy × 0.5", "128×96", "160×128", "E_LORA", "no such LoRA"):
        assert figure in words
    text = index.read_text("utf-8")
    assert "<dt>steps</dt><dd>3</dd>" in text
    assert "<b>1</b> videos</li><li><b>1</b> failed" in text


def test_page_without_a_single_video(run):
    out, manifest, summary = run
    write_results(out, [RowResult(row=row, line=1, name=row, status="failed") for row in ("a.b-ü", "bad")])
    sheet, index = show(out, manifest, summary)
    assert sheet is None
    assert "contact_sheet" not in index.read_text("utf-8")


PROBE = """<script>
addEventListener("load", async () => {
  const videos = [...document.querySelectorAll("video")];
  const limit = performance.now() + 5000;
  while (videos.some((v) => v.readyState < 2 && !v.error) && performance.now() < limit)
    await new Promise((r) => setTimeout(r, 20));
  document.getElementById("slow").click();
  document.title = JSON.stringify({
    title: document.title,
    videos: videos.map((v) => [v.videoWidth, v.videoHeight, v.error && v.error.message, v.playbackRate]),
    images: [...document.images].map((i) => i.naturalWidth > 0),
    overflow: document.documentElement.scrollWidth - innerWidth,
    pressed: document.getElementById("slow").getAttribute("aria-pressed"),
    loaded: performance.getEntriesByType("resource").map((e) => e.name),
  });
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_plays_it(run, tmp_path, width):
    out, manifest, summary = run
    _, index = show(out, manifest, summary)
    probed = out / "probed.html"
    probed.write_text(index.read_text("utf-8").replace("</body>", f"{PROBE}</body>"), "utf-8")
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=8000"),
        *("--dump-dom", probed.as_uri()),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    state = json.loads(html.unescape(dom.split("<title>")[1].split("</title>")[0]))
    assert state["title"] == "First light"
    assert state["videos"] == [[128, 96, None, 0.5]]
    assert state["images"] == [True, True]
    assert state["overflow"] <= 0
    assert state["pressed"] == "true"
    assert all(address.startswith(out.as_uri()) for address in state["loaded"])
