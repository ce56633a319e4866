"""The API as its clients meet it: a real server on a free port over a real store, and a lane that draws stand-ins."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import uvicorn
from PIL import Image
from sqlalchemy import update

from sakuga.api import ApiDeps, ApiSettings, ServedModel, create_app
from sakuga.cost.devices import CPU
from sakuga.jobstore import Artifact, Claim, Lane, open_stores
from sakuga.jobstore.schema import jobs, renders
from sakuga.media import write_mp4
from sakuga.recipe import RenderRecipe
from sakuga.storage.objects import FolderObjects
from sakuga.wan.catalogue import card

LIMIT_S = 60.0
LANE = Lane(name="lane-1", models=("wan-mini",))
PROFILES = {"draft": {"num_inference_steps": 4, "guidance_scale": 1.0}}


def wait_for(condition: Callable[[], object], what: str = "a condition") -> object:
    """What the condition gives once it is true."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {LIMIT_S:g} s for {what}")


class LocalServer:
    """An application under uvicorn, in a thread."""

    def __init__(self, app) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> str:
        self._thread.start()
        wait_for(lambda: self._server.started, "uvicorn")
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "uvicorn did not stop"


class ApiFarm:
    """A store, storage, a server, and clients of it."""

    def __init__(self, folder: Path, settings: ApiSettings | None = None, *, memory_bytes: int | None = None) -> None:
        self.stores = open_stores(f"sqlite:///{folder / 'jobs.sqlite'}")
        self.objects = FolderObjects(folder / "objects")
        self.scratch = folder / "scratch"
        served = ServedModel(card=card("wan-mini"), device=CPU, profiles=PROFILES, memory_bytes=memory_bytes)
        self.deps = ApiDeps(
            stores=self.stores, objects=self.objects, models={"wan-mini": served}, scratch=self.scratch,
            settings=settings or ApiSettings(event_poll_s=0.02),
        )  # fmt: skip
        self.app = create_app(self.deps)
        self._server = LocalServer(self.app)
        self.url = self._server.start()

    def key(self, tenant: str, **fields: object) -> str:
        return self.stores.keys.create(tenant, **fields)[1]

    def client(self, tenant: str, **fields: object) -> openai.OpenAI:
        """OpenAI's own, with a key of its own; as it comes, but that it tries once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key(tenant, **fields), max_retries=0)

    def http(self, tenant: str, **fields: object) -> httpx.Client:
        client = self.anonymous()
        client.headers["authorization"] = f"Bearer {self.key(tenant, **fields)}"
        return client

    def anonymous(self) -> httpx.Client:
        # Without certificates to read, which take longer than most tests.
        return httpx.Client(base_url=self.url, timeout=LIMIT_S, verify=False, trust_env=False)

    def claim(self) -> Claim:
        claim = self.stores.renders.claim(LANE)
        assert claim is not None
        return claim

    def publish(self, claim: Claim) -> None:
        """A video of the asked length, small."""
        recipe = RenderRecipe.from_dict(claim.recipe)
        prefix = f"{claim.prefix}/video"
        with contextlib.ExitStack() as stack:
            folder = self.scratch / f"lane-{claim.render_id}"
            folder.mkdir()
            stack.callback(lambda: [path.unlink() for path in folder.iterdir()] and folder.rmdir())
            frames_THWC = np.zeros((recipe.num_frames, 16, 16, 3), np.uint8)
            frames_THWC += np.arange(recipe.num_frames, dtype=np.uint8)[:, None, None, None]
            write_mp4(folder / "video.mp4", frames_THWC, recipe.fps)
            for name in ("video.webp", "video.sprites.webp"):
                Image.new("RGB", (4, 4)).save(folder / name)
            receipt = {"seconds": {"encode": 0.1, "denoise": 1.0, "decode": 0.2, "total": 1.3}}
            (folder / "video.json").write_text(json.dumps(receipt))
            stored = [self.objects.put(f"{prefix}/{path.name}", path) for path in sorted(folder.iterdir())]
        movie = next(each for each in stored if each.name.endswith(".mp4"))
        artifact = Artifact(prefix=prefix, sha256=movie.sha256, num_bytes=movie.num_bytes, receipt=receipt)
        assert self.stores.renders.publish(claim, artifact)

    def render(self) -> Claim:
        """The next render, from claim to video."""
        claim = self.claim()
        self.publish(claim)
        return claim

    @contextlib.contextmanager
    def lane(self, fails: str = "") -> Iterator[None]:
        """Inside, a lane takes whatever comes; each render of the prompt `fails` breaks."""
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                claim = self.stores.renders.claim(LANE)
                if claim is None:
                    over.wait(0.01)
                    continue
                for step in range(1, claim.num_steps + 1):
                    self.stores.renders.heartbeat(claim, step)
                if claim.recipe["prompt"] == fails:
                    self.stores.renders.failed(claim, "E_NAN", "the render has NaN")
                else:
                    self.publish(claim)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(LIMIT_S)

    def clear(self) -> None:
        """Nothing is in flight any more; what a test leaves behind is not claimed by the next."""
        with self.stores.jobs.engine.begin() as connection:
            for table in (jobs, renders):
                live = update(table).where(table.c.state.in_(("queued", "running")))
                connection.execute(live.values(state="cancelled"))

    def close(self) -> None:
        self._server.stop()
        wait_for(lambda: not list(self.scratch.glob("request-*")), "the files of requests to go")


def error_of(response: httpx.Response) -> dict:
    """The error of OpenAI's envelope."""
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return error


def png(width: int = 32, height: int = 32, colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def lines(*rows: object) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()
