"""One training run: its folder, its checkpoint, its log, and the device it uses.

A run folder holds `run.json` (device and settings), `checkpoint.pt` (complete or absent: written aside, then renamed)
and `log.jsonl` (one line a step that was logged; what a resumed run repeats is cut off).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from sakuga.training.optimizers import Ema, MuonAdamW

log = logging.getLogger(__name__)


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


DECODER = ("model.decoder.", "model.conv2.")
"""The part of the VAE that latents do not depend on."""


def fingerprint(*paths: Path) -> str:
    """Eight hex digits of the weights that a run or a cache rests on; they stand in its folder's name.

    New weights below so give new folders above: nothing made for the old ones can be taken for finished. A finer
    decoder changes no latent, so it does not count.
    """
    digest = hashlib.sha256()
    for path in paths:
        for name, value in sorted(load_file(path).items()):
            if not name.startswith(DECODER):
                digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:8]


def device_name(device: torch.device) -> str:
    """What a run says that it ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


@dataclass
class Run:
    """Step counter, checkpoints and log of a stage."""

    folder: Path
    module: torch.nn.Module
    optimizer: MuonAdamW
    ema: Ema
    num_steps: int
    save_every_s: float = 120.0
    step: int = 0
    seconds: float = 0.0
    _saved_at: float = field(default_factory=time.monotonic)
    _ticked_at: float = field(default_factory=time.monotonic)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self, facts: dict[str, object] | None = None) -> None:
        """Load the last checkpoint if there is one; `facts` (device, settings) are kept as `run.json` for the card."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if facts is not None:
            (self.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.module.load_state_dict(saved["module"])
            self.optimizer.load_state_dict(saved["optimizer"])
            for name, value in saved["ema"].items():
                self.ema.mean[name].copy_(value)
            self.step, self.seconds = saved["step"], saved["seconds"]
            self._cut_log()
            log.info("%s resumes at step %d", self.folder.name, self.step)
        self._ticked_at = time.monotonic()

    def _cut_log(self) -> None:
        path = self.folder / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            path.write_text("".join(line + "\n" for line in kept))

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.mean,
            "step": self.step,
            "seconds": self.seconds,
        }
        aside = self.checkpoint.with_suffix(".tmp")
        torch.save(state, aside)
        os.replace(aside, self.checkpoint)
        self._saved_at = time.monotonic()

    def after_step(self, figures: dict[str, float], log_every: int = 20) -> None:
        """Count the step, log now and then, save every `save_every_s`."""
        now = time.monotonic()
        self.seconds += now - self._ticked_at
        self._ticked_at = now
        self.step += 1
        if self.step % log_every == 0 or self.step == self.num_steps:
            line = {"step": self.step, "seconds": round(self.seconds, 1)} | {k: round(v, 5) for k, v in figures.items()}
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            log.info("%s %s", self.folder.name, line)
        if now - self._saved_at > self.save_every_s or self.step == self.num_steps:
            self.save()


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step: they follow from (seed, step), so that a resumed run draws the same."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
