"""An engine that takes the time of a render and makes no picture: many lanes on two cores.

Every stage sleeps as long as the cost model predicts for a device, divided by `speed`. It is driven like a lane's
ranks, so that stores, lanes and schedulers meet what they meet with a real engine. Imports no PyTorch.

Run: pytest tests/unit/test_simulated.py
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sakuga.cost import DeviceSpec, Estimate, Planned, estimate
from sakuga.cost.footprint import Execution
from sakuga.engine.session import InputFiles, Progress
from sakuga.errors import WeightsError
from sakuga.media import write_json_atomic, write_mp4
from sakuga.recipe import RenderRecipe
from sakuga.wan.catalogue import card

NOTE = "simulated: no picture was made"


class SimEngine:
    """Sleeps through renders on one device under one plan."""

    def __init__(
        self,
        device: DeviceSpec,
        execution: Execution | None = None,
        *,
        speed: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device, self.execution, self.speed = device, execution or Planned(), speed
        self._sleep = sleep
        self._recipe: RenderRecipe | None = None
        self._picture: bytes | None = None

    def begin(self, recipe: RenderRecipe, files: InputFiles, snapshot: Path | None = None) -> Progress:
        step = 0
        if snapshot is not None:
            saved = json.loads(snapshot.read_text())
            if saved["key"] != recipe.render_key:
                raise WeightsError(f"{snapshot} is of another render; start the render again")
            step = saved["step"]
        self._recipe = recipe
        if not step:
            self._take(self._estimate.encode_s)
        return Progress(step=step, num_steps=recipe.num_inference_steps)

    def step(self, at: Progress, /) -> Progress:
        self._take(self._estimate.step_s)
        return Progress(step=at.step + 1, num_steps=at.num_steps)

    def snapshot(self, at: Progress, path: Path) -> None:
        assert self._recipe is not None
        write_json_atomic(path, {"key": self._recipe.render_key, "step": at.step})

    def preview(self, at: Progress, path: Path) -> bool:
        return False

    def finish(self, at: Progress, folder: Path) -> Mapping[str, object]:
        assert self._recipe is not None
        predicted, recipe = self._estimate, self._recipe
        self._take(predicted.decode_s)
        seconds = {"encode": predicted.encode_s, "denoise": predicted.denoise_s, "decode": predicted.decode_s}
        receipt = {
            "key": recipe.render_key,
            "recipe": recipe.as_dict(),
            "device": self.device.name,
            "seconds": seconds | {"total": predicted.total_s},
            "notes": [NOTE],
        }
        path = folder / "video.mp4"
        if self._picture is None:
            write_mp4(path, np.full((1, 16, 16, 3), 128, np.uint8), recipe.fps)
            self._picture = path.read_bytes()
        path.write_bytes(self._picture)
        write_json_atomic(folder / "video.json", receipt)
        return receipt

    def shrink(self) -> bool:
        return False

    @property
    def _estimate(self) -> Estimate:
        assert self._recipe is not None, "a render is begun first"
        return estimate(self._recipe, card(self._recipe.model), self.execution, self.device)

    def _take(self, seconds: float) -> None:
        self._sleep(seconds / self.speed)
