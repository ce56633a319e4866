"""Every call of `client.videos`, by whichever version of `openai` this process finds; prints what came of it as JSON.

A program of its own: `OPENAI_BASE_URL` and `OPENAI_API_KEY` say where the farm is. Ids, times and seeds stay out of
the facts, so that two versions can be held to each other.     Run: pytest tests/unit/test_api_clients.py
"""

import asyncio
import base64
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import openai

SMALL = {"size": "32x32", "extra_body": {"num_frames": 5, "num_inference_steps": 2}}
SOON = {"poll_interval_ms": 50}
KEYS = (
    "id", "object", "model", "status", "progress", "created_at", "completed_at", "expires_at", "prompt", "size",
    "seconds", "remixed_from_video_id", "error",
)  # fmt: skip
NEW_EACH_TIME = ("id", "created_at", "completed_at", "expires_at", "remixed_from_video_id")


def main(breaks: str, picture: Path, folder: Path) -> dict[str, object]:
    """`breaks` is the prompt of a render that fails."""
    client = openai.OpenAI(max_retries=0)
    video = client.videos.create(
        prompt="A fairy dances.", model="wan-mini", size="48x32", seconds="4", input_reference=picture,
        extra_body={"num_inference_steps": 2},
    )  # fmt: skip
    done = client.videos.poll(video.id, **SOON)
    made = client.videos.create_and_poll(prompt="A fairy sleeps.", **SOON, **SMALL)
    remix = client.videos.remix(made.id, prompt="A fairy sings.")
    broken = client.videos.create_and_poll(prompt=breaks, **SOON, **SMALL)
    others = [client.videos.create(prompt=f"A fairy, {number}.", **SMALL).id for number in range(3)]
    ids = [video.id, made.id, remix.id, broken.id, *others]
    page = client.videos.list(limit=2)
    stranger = openai.OpenAI(api_key="sk-sakuga-of-nobody", max_retries=0)
    raw = client.videos.with_raw_response.retrieve(made.id)
    return {
        "create": seen(video, done.id),
        "poll": seen(done, video.id),
        "retrieve": seen(client.videos.retrieve(video.id), video.id),
        "create_and_poll": seen(made, made.id),
        "async": seen(asyncio.run(asynchronous()), None),
        "raw": [raw.status_code, raw.headers["x-request-id"][:4], seen(raw.parse(), made.id)],
        "by address": by_address(client, picture),
        "remix": [seen(remix, remix.id), remix.remixed_from_video_id == made.id],
        "failed": [seen(broken, broken.id), broken.error.code, broken.error.message],
        "first page": [[ids.index(each.id) for each in page.data], page.has_next_page()],
        "all pages": [ids.index(each.id) for each in page if each.id in ids],
        "oldest first": [ids.index(each.id) for each in client.videos.list(order="asc", limit=3) if each.id in ids],
        "content": {kind: content(client, video.id, kind) for kind in ("video", "thumbnail", "spritesheet")},
        "to a file": to_file(client, video.id, folder / "video.mp4"),
        "delete": [client.videos.delete(others[0]).model_dump(exclude={"id"}) for _ in range(2)],
        "deleted": refused(lambda: client.videos.retrieve(others[0])),
        "bad size": refused(lambda: client.videos.create(prompt="x", size="33x32")),
        "no such field": refused(lambda: client.videos.create(prompt="x", extra_body={"steps": 2})),
        "not yet": refused(lambda: client.videos.download_content(broken.id)),
        "bad remix": refused(lambda: client.videos.remix(made.id, prompt="")),
        "stranger": refused(lambda: stranger.videos.list()),
    }


async def asynchronous() -> openai.types.Video:
    async with openai.AsyncOpenAI(max_retries=0) as client:
        return await client.videos.create_and_poll(prompt="A fairy runs.", **SOON, **SMALL)


def seen(video: openai.types.Video, video_id: str | None) -> dict[str, object]:
    """What the client's own class makes of an answer."""
    told = video.model_dump()
    assert set(KEYS) <= set(told), sorted(set(KEYS) - set(told))
    assert video_id in (None, video.id)
    kept = {name: told[name] for name in KEYS if name not in NEW_EACH_TIME}
    kept["error"] = video.error and [video.error.code, video.error.message]  # newer clients have more keys, all empty
    moving = video.status in ("queued", "in_progress")  # how far it is depends on the lane
    return kept | ({"status": "moving", "progress": None} if moving else {"ended": video.completed_at is not None})


def by_address(client: openai.OpenAI, picture: Path) -> str:
    data = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    extra: Mapping[str, object] = {**SMALL["extra_body"], "input_reference": {"image_url": data}}
    video = client.videos.create(prompt="A fairy waits.", size="32x32", extra_body=extra)
    return client.videos.poll(video.id, **SOON).status


def content(client: openai.OpenAI, video_id: str, variant: str) -> list[object]:
    found = client.videos.download_content(video_id, variant=variant)
    data = found.read()
    return [found.response.headers["content-type"], len(data), data[4:8].hex()]


def to_file(client: openai.OpenAI, video_id: str, path: Path) -> list[object]:
    with client.videos.with_streaming_response.download_content(video_id) as response:
        response.stream_to_file(path)
    return [path.stat().st_size, path.read_bytes()[4:8].decode()]


def refused(call: Callable[[], object]) -> list[object]:
    try:
        call()
    except openai.APIStatusError as error:
        told = [type(error).__name__, error.status_code, error.code, error.param, error.type]
        return [*told, bool(error.request_id), bool(error.message)]
    raise AssertionError("this was not refused")


if __name__ == "__main__":
    breaks, picture, folder = sys.argv[1:]
    facts = main(breaks, Path(picture), Path(folder))
    print(json.dumps({"version": openai.__version__, "from": str(Path(openai.__file__).parents[1]), "facts": facts}))
