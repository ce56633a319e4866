"""Jobs of a farm as people read them: a table, a sentence for each event, a bar while one is rendered.

What a user or a farm wrote is shown with its control characters escaped.     Run: pytest tests/unit/test_cli_jobs.py
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from sakuga.cli.bars import clock
from sakuga.cli.client import Told

if TYPE_CHECKING:
    from openai.types import Video

STYLES = {"completed": "green", "failed": "red", "cancelled": "dim", "queued": "dim"}
UNITS_S = {"d": 86400, "h": 3600, "min": 60, "s": 1}
ID_WIDTH = 36


def table_of(videos: Iterable["Video"]) -> Table:
    """A line for each; ids are whole, since they are what one copies, and prompts take what is left."""
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True, min_width=ID_WIDTH)
    table.add_column("status", no_wrap=True)
    table.add_column("age", no_wrap=True, justify="right")
    table.add_column("prompt")
    for video in videos:
        state = state_of(video)
        shown_state = f"{video.progress} %" if state == "in_progress" else state
        prompt = Text(plain(video.prompt or ""), no_wrap=True, overflow="ellipsis")
        age = age_of(time.time() - video.created_at)
        table.add_row(video.id, Text(shown_state, STYLES.get(state, "cyan")), age, prompt)
    return table


def state_of(video: "Video") -> str:
    """Its status; OpenAI's four have no word for what was cancelled."""
    return "cancelled" if video.error is not None and video.error.code == "cancelled" else video.status


def end_of(video: "Video") -> str:
    """How it ended, in a sentence."""
    state = state_of(video)
    if video.error is None or state == "cancelled":
        return f"{video.id} {state}"
    return f"{video.id} {state}: {plain(f'{video.error.code} {video.error.message}')}"


def sentence(kind: str, data: Mapping[str, object]) -> str:
    """An event for people.

    >>> sentence("step", {"stage": "denoise", "step": 3, "num_steps": 20, "eta_s": 75.2})
    'denoise 3/20, 1:15 left'
    >>> sentence("queued", {"queue_position": 2, "eta_s": 3.0}), sentence("queued", {"queue_position": 0})
    ('queued, 2 before it, 0:03 left', 'queued')
    >>> sentence("queued", {"why": "parked", "reason": "storage is away"}), sentence("something new", {"x": 1})
    ('queued again: parked storage is away', 'something new')
    """
    words = [kind]
    if kind in ("running", "step"):
        words = [f"{data.get('stage')} {data.get('step')}/{data.get('num_steps')}"]
    reasons = [str(data[name]) for name in ("why", "reason", "error_code", "error_message") if data.get(name)]
    if reasons:
        words = [f"{kind}{' again' if kind == 'queued' else ''}: {' '.join(reasons)}"]
    if kind == "queued" and data.get("queue_position"):
        words.append(f"{data['queue_position']} before it")
    eta_s = data.get("eta_s")
    if isinstance(eta_s, (int, float)):
        words.append(f"{clock(eta_s)} left")
    return plain(", ".join(words))


def line(event: Told) -> str:
    """An event with its time, the reader's own."""
    at = event.data.get("at")
    when = f"{datetime.fromtimestamp(at):%H:%M:%S} " if isinstance(at, (int, float)) else ""
    return f"{when}{sentence(event.type, event.data)}"


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Callable[[Told], None]]:
    """Gives what draws an event: a bar on a terminal, else a line for each but the steps."""
    if not console.is_terminal:
        yield lambda event: None if event.type == "step" else console.print(line(event), markup=False)
        return
    with Progress(TextColumn("{task.description}", markup=False), BarColumn(), console=console, transient=True) as bar:
        task = bar.add_task("queued", total=None)

        def draw(event: Told) -> None:
            step, num_steps = event.data.get("step"), event.data.get("num_steps")
            is_known = isinstance(step, int) and isinstance(num_steps, int)
            total, done = (num_steps, step) if is_known else (None, 0)
            bar.update(task, description=sentence(event.type, event.data), total=total, completed=done)

        yield draw


def age_of(seconds: float) -> str:
    """In its largest unit.

    >>> age_of(-1), age_of(59), age_of(130), age_of(7300), age_of(200_000)
    ('0 s', '59 s', '2 min', '2 h', '2 d')
    """
    unit = next((unit for unit, unit_s in UNITS_S.items() if seconds >= unit_s), "s")
    return f"{max(0.0, seconds) // UNITS_S[unit]:.0f} {unit}"


def plain(text: str) -> str:
    r"""Without what a terminal would obey.

    >>> plain("a\x1b[31m b\n")
    'a\\x1b[31m b\\n'
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
