"""What a finished run shows: a contact sheet and a page, made from its results and receipts.

Reads files of the output folder and writes two; knows no Ray.      Run: pytest tests/unit/test_page.py
"""

import json
from collections.abc import Mapping
from pathlib import Path

from sakuga.farm.demo.inputs import KINDS
from sakuga.farm.demo.page import Cut, Page, page_html
from sakuga.farm.results import RESULTS_NAME, THUMBNAIL_SUFFIX, BulkSummary, RowResult
from sakuga.media import contact_sheet, read_video, save_image, write_bytes_atomic
from sakuga.recipe import RecipeRequest
from sakuga.recipe.manifest import read_manifest
from sakuga.wan.catalogue import card

SHEET_NAME = "contact_sheet.png"
PAGE_NAME = "index.html"
RECIPE_FIGURES = ("seed", "num_inference_steps", "width", "height", "num_frames", "fps")
CAPTIONS = {"input_image": "first", "end_image": "last", "reference_image": "reference"}


def read_results(out: Path) -> dict[str, RowResult]:
    """The results of the last run in `out` by row id."""
    lines = (out / RESULTS_NAME).read_text("utf-8").splitlines()
    return {result.row: result for result in (RowResult(**json.loads(line)) for line in lines)}


def write_contact_sheet(out: Path, rows: Mapping[str, RecipeRequest], results: Mapping[str, RowResult]) -> Path | None:
    """One strip a video, in manifest order; None when there is no video."""
    videos = [
        (f"{row}: {request.prompt}", read_video(out / video))
        for row, request in rows.items()
        if (video := results[row].video) is not None
    ]
    if not videos:
        return None
    save_image(out / SHEET_NAME, contact_sheet(videos))
    return out / SHEET_NAME


def write_page(
    out: Path,
    rows: Mapping[str, RecipeRequest],
    results: Mapping[str, RowResult],
    summary: BulkSummary,
    sheet: Path | None,
) -> Path:
    """`index.html` beside the videos."""
    cuts = tuple(cut_of(out, request, results[row]) for row, request in rows.items())
    num_loras = sum(bool(cut.loras) for cut in cuts)
    page = Page(
        title="First light",
        lead=f"{len(cuts)} short dances, rendered as one Ray job on this machine by {_models(cuts)}; "
        f"{num_loras} of them with a LoRA that turns the first frame into an anime fairy.",
        stats=_stats(summary, cuts),
        cuts=cuts,
        contact_sheet=sheet.name if sheet is not None else None,
        footer="Every video has its receipt beside it: the recipe, its key, the hashes of the weights and the seconds "
        "of each stage. The same recipe gives the same video.",
    )
    write_bytes_atomic(out / PAGE_NAME, page_html(page).encode())
    return out / PAGE_NAME


def show(out: Path, manifest: Path, summary: BulkSummary) -> tuple[Path | None, Path]:
    """Contact sheet (None without a video) and page of the run that just ended in `out`."""
    rows = {row.id: row.request for row in read_manifest(manifest).rows}
    results = read_results(out)
    sheet = write_contact_sheet(out, rows, results)
    return sheet, write_page(out, rows, results, summary, sheet)


def cut_of(out: Path, request: RecipeRequest, result: RowResult) -> Cut:
    """What the page says about one row: the recipe of its receipt, or for a failed row what its request asked for."""
    if result.receipt is not None:
        used = json.loads((out / result.receipt).read_text("utf-8"))["recipe"]
    else:
        defaults = card(request.model)
        asked = request.model_dump()
        used = {name: asked[name] or getattr(defaults, name, 0) for name in RECIPE_FIGURES}
    pictures = [(caption, getattr(request, role)) for role, caption in CAPTIONS.items() if getattr(request, role)]
    return Cut(
        kind=KINDS.get(result.row, result.row),
        prompt=request.prompt,
        model=request.model,
        loras=tuple(_lora_words(lora.name or Path(str(lora.path)).stem, lora.weight) for lora in request.loras),
        seconds=result.seconds.get("total"),
        video=result.video,
        poster=f"{result.name}{THUMBNAIL_SUFFIX}" if result.video else None,
        receipt=result.receipt,
        pictures=tuple((caption if len(pictures) > 1 else "from", path) for caption, path in pictures),
        error=f"{result.error['code']}: {result.error['message']}" if result.error else None,
        seed=int(used["seed"]),
        num_inference_steps=int(used["num_inference_steps"]),
        width=int(used["width"]),
        height=int(used["height"]),
        num_frames=int(used["num_frames"]),
        fps=float(used["fps"]),
    )


def _lora_words(name: str, weight: float) -> str:
    return name if weight == 1 else f"{name} × {weight:g}"


def _models(cuts: tuple[Cut, ...]) -> str:
    return " and ".join(dict.fromkeys(cut.model for cut in cuts))


def _stats(summary: BulkSummary, cuts: tuple[Cut, ...]) -> tuple[tuple[str, str], ...]:
    """Only what was measured: a run that skipped all has no pace."""
    stats = [(str(summary.done + summary.skipped), "videos")]
    if summary.failed:
        stats.append((str(summary.failed), "failed"))
    if summary.done:
        stats.append((f"{summary.wall_s:.0f} s", "for the whole run"))
        stats.append((f"{summary.videos_per_min:.1f}", "videos a minute"))
    timed = [cut.seconds for cut in cuts if cut.seconds is not None]
    if timed:
        stats.append((f"{sum(timed) / len(timed):.1f} s", "for a video"))
    return tuple(stats)
