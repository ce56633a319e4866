"""The page of a run: one self-contained `index.html` beside its videos.

Takes values and gives text; it knows neither Ray nor files. All text of users is escaped, all addresses are relative,
and nothing is loaded from elsewhere, so that the folder can be zipped, mailed and opened offline.

Run: pytest tests/unit/test_page.py
"""

import html
import importlib.resources
import string
from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One video of the page, or the error that stands in its place. Paths are relative to the page."""

    kind: str
    """What it was made from, in words: "From text", "From a photograph"."""
    prompt: str
    seed: int
    num_inference_steps: int
    width: int
    height: int
    num_frames: int
    fps: float
    model: str
    loras: tuple[str, ...] = ()
    """Names as the user gave them, with the weight where it is not 1."""
    seconds: float | None = None
    """Render time, encode to decode."""
    video: str | None = None
    poster: str | None = None
    receipt: str | None = None
    pictures: tuple[tuple[str, str], ...] = ()
    """(caption, path) of the pictures that the video was made from."""
    error: str | None = None
    """"E_CODE: sentence" of a video that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the page shows."""

    title: str
    lead: str
    stats: tuple[tuple[str, str], ...]
    """(figure, what it counts)"""
    cuts: tuple[Cut, ...]
    contact_sheet: str | None
    footer: str


def page_html(page: Page) -> str:
    """The whole document as text."""
    template = string.Template(importlib.resources.files("sakuga.farm.demo").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=html.escape(page.title),
        lead=html.escape(page.lead),
        stats="".join(f"<li><b>{html.escape(figure)}</b> {html.escape(what)}</li>" for figure, what in page.stats),
        cards="\n".join(_cut_html(cut) for cut in page.cuts),
        sheet=_sheet_html(page.contact_sheet),
        footer=html.escape(page.footer),
    )


def _address(path: str) -> str:
    return html.escape(quote(path))


def _cut_html(cut: Cut) -> str:
    chips = [
        ("seed", str(cut.seed)),
        ("steps", str(cut.num_inference_steps)),
        ("size", f"{cut.width}×{cut.height}"),
        ("length", f"{cut.num_frames / cut.fps:.1f} s"),
        ("model", cut.model),
    ]
    if cut.seconds is not None:
        chips.insert(2, ("rendered in", f"{cut.seconds:.1f} s"))
    chips_html = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in chips)
    loras_html = "".join(f'<div class="lora"><dt>LoRA</dt><dd>{html.escape(name)}</dd></div>' for name in cut.loras)
    return (
        f'<article class="cut"><div class="stage" style="--ratio: {cut.width} / {cut.height}">{_stage_html(cut)}</div>'
        f'<div class="words"><p class="kind">{html.escape(cut.kind)}</p><p class="prompt">{html.escape(cut.prompt)}</p>'
        f'<dl class="chips">{loras_html}{chips_html}</dl>{_links_html(cut)}</div></article>'
    )


def _stage_html(cut: Cut) -> str:
    pictures = "".join(
        f'<figure><img src="{_address(path)}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>'
        for caption, path in cut.pictures
    )
    inset = f'<div class="from">{pictures}</div>' if pictures else ""
    if cut.video is None:
        code, _, sentence = (cut.error or "E_SAKUGA: no video").partition(": ")
        return f'<div class="failed"><b>{html.escape(code)}</b>{html.escape(sentence)}</div>{inset}'
    poster = f' poster="{_address(cut.poster)}"' if cut.poster else ""
    label = html.escape(cut.prompt)
    return (
        f'<video src="{_address(cut.video)}"{poster} width="{cut.width}" height="{cut.height}" aria-label="{label}" '
        f'muted loop playsinline preload="auto"></video>{inset}'
    )


def _links_html(cut: Cut) -> str:
    links = [(cut.video, "video"), (cut.receipt, "receipt")]
    shown = " · ".join(f'<a href="{_address(path)}">{text}</a>' for path, text in links if path)
    return f'<p class="links">{shown}</p>' if shown else ""


def _sheet_html(path: str | None) -> str:
    if path is None:
        return ""
    return (
        '<h2>Contact sheet</h2><p class="note">A row is a video; the frames run from left to right.</p>'
        f'<a class="sheet" href="{_address(path)}"><img src="{_address(path)}" alt="Frames of every video"></a>'
    )
