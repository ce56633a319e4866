"""`sakuga rate`: blind rating of pairs of videos in the browser, and what it came to.

Run: pytest tests/unit/test_cli_rate.py
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sakuga.cli.output import AsJson, finish, print_json

if TYPE_CHECKING:
    from sakuga.quality.ratings import RatingSummary
    from sakuga.quality.report import Interval


def rate(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder with a sub-folder of videos for each variant; answers go there.")
    ] = None,
    a: Annotated[Path | None, typer.Option(help="One variant's videos, instead of sub-folders.")] = None,
    b: Annotated[Path | None, typer.Option(help="The other one's; answers go to DIR, or beside this folder.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Print what the answers so far come to.")] = False,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for phones in your network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8020,
    as_json: AsJson = False,
) -> None:
    """Show people two videos side by side without names, and keep what they think of each in ratings.jsonl."""
    from sakuga.errors import InputError
    from sakuga.quality.ratings import RATINGS_FILE, find_variants, folders_in, pairs_of, read_ratings, summarise

    if (a is None) != (b is None):
        raise InputError("--a and --b go together: give both folders, or one DIR with sub-folders")
    home = folder or (b.parent if b else None)
    if home is None:
        raise InputError("nothing to rate: give a DIR with a sub-folder for each variant, or --a and --b")
    if summary:
        found = summarise(read_ratings(home / RATINGS_FILE))
        finish(found.as_dict(), _text(found), as_json)
        return
    videos = find_variants([a, b] if a and b else folders_in(home))
    pairs = pairs_of(videos)

    from sakuga.api.rating import RatingTask, open_port, serve_rating
    from sakuga.media import check_output_dir, video_info

    for path in {videos[variant][pair.stem] for pair in pairs for variant in pair.variants}:
        video_info(path)  # before somebody sits in front of a black square
    task = RatingTask(folder=check_output_dir(home), pairs=pairs, videos=videos)
    read_ratings(task.file)
    listening = open_port(host, port)
    told = {"url": f"http://{host}:{port}/", "num_pairs": len(pairs), "ratings": str(task.file)}
    if as_json:
        print_json(told)
    else:
        print(f"{len(pairs)} pairs of {', '.join(videos)}: rate them on {told['url']}")
        print(
            f"answers go to {task.file}; Ctrl-C ends it, `sakuga rate {home} --summary` says what they come to",
            flush=True,
        )
    serve_rating(task, listening)


def _text(found: "RatingSummary") -> Group:
    questions = list(next(iter(found.variants.values())).questions)
    table = Table("variant", *questions, "of 20", "won/even/lost", box=None, pad_edge=False)
    for name, said in found.variants.items():
        means = [_mean(said.questions[question]) for question in questions]
        counts = f"{said.wins}/{said.ties}/{said.losses}"
        table.add_row(escape(name), *means, _mean(said.subjective), counts)
    agreement = ", ".join(
        f"{question} {'not defined' if alpha is None else f'{alpha:.2f}'}"
        for question, alpha in found.agreement.items()
    )
    raters = f"{found.num_ratings} answers of {len(found.raters)} raters; ± is half the 95 % interval over the videos"
    return Group(table, Text(raters), Text(f"agreement (Krippendorff's alpha): {agreement}"))


def _mean(value: "Interval") -> str:
    return f"{value.mean:.1f}" + ("" if value.high is None else f" ±{value.high - value.mean:.1f}")
