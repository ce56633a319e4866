"""The rating page in a real browser: a rater goes through all pairs by keyboard and pointer, also on a phone."""

import html
import json
import shutil
import subprocess

import numpy as np
import pytest
from fastapi.responses import HTMLResponse

from api_farm import LocalServer
from sakuga.api.rating import HEADERS, RatingTask, create_rating_app
from sakuga.media import write_mp4
from sakuga.quality.ratings import QUESTIONS, find_variants, pairs_of, read_ratings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAME = 'Eva <b>"&'

PROBE = """<script>
addEventListener("load", async () => {
  const limit = performance.now() + 12000, told = { shown: [], errors: [] };
  addEventListener("error", (event) => told.errors.push(event.message));
  addEventListener("unhandledrejection", (event) => told.errors.push(String(event.reason)));
  const until = async (what) => {
    while (!what() && performance.now() < limit) await new Promise((r) => setTimeout(r, 20));
    if (!what()) told.errors.push("waited for " + what);
  };
  const press = (key) => dispatchEvent(new KeyboardEvent("keydown", { key }));
  const visible = () => ["hello", "rate", "thanks"].filter((id) => !by(id).hidden);
  told.start = visible();
  by("name").value = NAME_HERE;
  document.querySelector("#who button").click();
  await until(() => state && state.pair);
  const first = state.pair;
  await until(() => videos.every((v) => v.readyState >= 2));
  told.sizes = videos.map((v) => [v.videoWidth, v.videoHeight]);
  told.side_by_side = videos[0].getBoundingClientRect().top === videos[1].getBoundingClientRect().top;
  told.overflow = document.documentElement.scrollWidth - innerWidth;
  told.targets = Math.min(...fields.map((f) => f.querySelector("label").getBoundingClientRect().width));
  told.words = document.body.innerText;
  press("Enter");                                   /* nothing chosen: nothing is sent */
  for (const key of "12345121") press(key);         /* left, right of each question in turn */
  told.complete = !by("send").disabled;
  press("Enter");
  await until(() => state.pair !== first);
  told.count = by("count").textContent;
  told.cleared = !fields.some(chosen) && by("send").disabled;
  for (const field of fields) field.querySelectorAll("label")[field.className.startsWith("left") ? 4 : 0].click();
  by("send").click();
  await until(() => state.pair === null);
  told.end = visible();
  told.thanks = by("thanks").innerText;
  told.addresses = performance.getEntriesByType("resource").map((e) => new URL(e.name).origin);
  told.origin = location.origin;
  await begin(store.get());                         /* what a reload does */
  told.reloaded = [visible(), by("alarm").hidden];
  document.title = JSON.stringify(told);
});
</script>"""


@pytest.fixture
def task(tmp_path):
    for n, variant in enumerate(("base", "lora")):
        (tmp_path / variant).mkdir()
        for stem in ("jump", "kick"):
            frames = np.full((5, 48, 64, 3), 90 + 60 * n, dtype=np.uint8)
            write_mp4(tmp_path / variant / f"{stem}.mp4", frames, 15)
    videos = find_variants([tmp_path / "base", tmp_path / "lora"])
    return RatingTask(folder=tmp_path, pairs=pairs_of(videos), videos=videos)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_rater_goes_through_all_pairs(task, tmp_path, width):
    app = create_rating_app(task)
    page = next(route.endpoint for route in app.routes if route.path == "/")().body.decode()
    probed = page.replace("</body>", PROBE.replace("NAME_HERE", json.dumps(NAME)) + "</body>")
    app.add_api_route("/probed", lambda: HTMLResponse(probed, headers=HEADERS))
    server = LocalServer(app)
    url = server.start()
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=15000"),
        *("--dump-dom", f"{url}/probed"),
    ]
    try:
        dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    finally:
        server.stop()
    told = json.loads(html.unescape(dom.split("<title>")[1].split("</title>")[0]))
    assert told["errors"] == []
    assert told["start"] == ["hello"]
    assert told["sizes"] == [[64, 48], [64, 48]]
    assert told["side_by_side"] and told["overflow"] <= 0
    assert told["targets"] >= 32, "large enough for a thumb"
    assert told["complete"] and told["cleared"]
    assert told["count"] == "Pair 2 of 2"
    assert told["end"] == ["thanks"] and told["reloaded"] == [["thanks"], True]
    assert not {"base", "lora"} & set(told["words"].lower().split())
    assert "all 2 pairs" in told["thanks"] and NAME.casefold() in told["thanks"]
    assert set(told["addresses"]) == {told["origin"]} and told["origin"] == url

    first, second = read_ratings(task.file)
    assert (first.rater, second.rater) == (NAME.casefold(),) * 2
    right = next(variant for variant in first.pair.variants if variant != first.left)
    assert first.scores == {
        first.left: dict(zip(QUESTIONS, (1, 3, 5, 2), strict=True)),
        right: dict(zip(QUESTIONS, (2, 4, 1, 1), strict=True)),
    }
    assert (second.total(second.left), sum(map(second.total, second.pair.variants))) == (20, 24)
