"""A renderer that does in milliseconds what a row's prompt says, so that the farm can be tested without a model.

Prompts: "dance" renders; "raise" raises a ValueError, "no disk" a full disk, "no recipe" has no key;
"die once" kills its process at the first attempt and "die always" at each; "signal PID NUM" sends a signal mid-row;
"wreck" raises what no worker catches, so that Ray itself fails; "hold" waits until a file `release` lies in the folder.
"""

import errno
import hashlib
import json
import os
import signal
import time
from pathlib import Path

from sakuga.errors import GeometryError
from sakuga.media.files import output_error

STEPS = 3
HOLD_LIMIT_S = 60


class Wreck(BaseException):
    """Not an error of a row."""


class FakeRenderer:
    def __init__(self, plan):
        self.out = Path(plan.out)

    def key(self, request):
        if request.prompt == "no recipe":
            raise GeometryError("1281x721 is not a multiple of 16; nearest: 1280x720")
        return hashlib.sha256(f"{request.prompt} {request.seed} {request.num_inference_steps}".encode()).hexdigest()

    def _wait_for_first_result(self) -> None:
        """A signal in the very moment in which Ray Data sets its iterator up would leave an execution behind."""
        deadline = time.monotonic() + HOLD_LIMIT_S
        while not (self.out / "results.jsonl").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.05)

    def render(self, request, name, on_step):
        with (self.out / "renders.log").open("a") as log:
            log.write(f"{name}\n")
        on_step("encode", 0, STEPS, None)
        words = request.prompt.split()
        for step in range(1, STEPS + 1):
            on_step("denoise", step, STEPS, 0.01)
            if step == 2:
                self._act(words, name)
        on_step("decode", STEPS, STEPS, None)
        receipt = {"key": self.key(request), "seconds": {"encode": 0.25, "denoise": 1.0, "decode": 0.5}}
        for suffix in (".mp4", ".webp", ".sprites.webp"):
            (self.out / f"{name}{suffix}").write_bytes(b"video")
        (self.out / f"{name}.json").write_text(json.dumps(receipt))
        return receipt

    def _act(self, words, name):
        if words[0] == "hold":
            deadline = time.monotonic() + HOLD_LIMIT_S
            while not (self.out / "release").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            return
        if words[0] == "raise":
            raise ValueError("this row is cursed")
        if words[0] == "no":
            path = self.out / f"{name}.mp4"
            raise output_error(path, OSError(errno.ENOSPC, "No space left on device"))
        if words[0] == "die":
            first = sum(line == name for line in (self.out / "renders.log").read_text().split()) == 1
            if first or words[1] == "always":
                os.kill(os.getpid(), signal.SIGKILL)
        if words[0] == "wreck":
            raise Wreck("the floor gave way")
        if words[0] == "signal":
            once = self.out / "signalled"
            if not once.exists():
                once.touch()
                self._wait_for_first_result()
                os.kill(int(words[1]), int(words[2]))
