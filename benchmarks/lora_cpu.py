"""A fairy LoRA in five minutes on two cores: from the small data set to a file, and what it does to held-out dancers.

    python benchmarks/lora_cpu.py --json

`prepare_s` and `seconds` are whole commands, from their start to the saved file. `base` renders the test clips of the
data set without a LoRA, `base_fairy_prompt` asks the same model for the fairy in words, `lora` does both. Scores are
those of the dancer (where she is in any frame of the target, and 4 pixels around) in frames 9 to 33, when the photo has
turned into the fairy; against the drawn target, before any mp4. `gain_db` and `gain_ssim` are over the better of the
two bases.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from common import machine_facts, print_result  # benchmarks/common.py
from PIL import Image

from sakuga.engine import LocalEngine
from sakuga.engine.resolve import resolve
from sakuga.media import contact_sheet, image_sha256, save_image
from sakuga.quality import psnr, ssim
from sakuga.recipe import ImageRef, RecipeRequest
from sakuga.synth import Sample, make_sample
from sakuga.synth.dataset import is_test_seed

FIRST_FRAME = 8
"""Frame 9: the transformation is over."""
DILATION_PX = 4
NUM_GROUPS = 50
"""Of the small data set."""
SHOWN = (9, 39)
"""Test clips on the sheet: a stage and a beach."""
TRAINING = (
    *("--rank", "64", "--steps", "380", "--batch-size", "4", "--optimizer", "muon", "--lr", "1e-2"),
    *("--weight-decay", "0", "--ema-decay", "0.97", "--loss-weighting", "none", "--text-dropout", "0.1"),
    *("--save-every", "1000", "--evaluate-every", "1000", "--validate", "0", "--max-minutes", "4.4"),
)
LAYER_WEIGHTS = ("--layer-weight", "colour=2", "--layer-weight", "shape=2")
"""What a person would type for this data; ends in time on a slow machine."""


def timed(*words: str) -> float:
    """Wall seconds of a command line of ours, its start included."""
    began = time.monotonic()
    subprocess.run([str(Path(sys.executable).with_name("sakuga")), *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def figure_mask(target: Sample) -> np.ndarray:
    union_HW = np.asarray(target.figure_mask_THW[FIRST_FRAME:].any(axis=0), dtype=np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * DILATION_PX + 1, 2 * DILATION_PX + 1))
    return np.broadcast_to(cv2.dilate(union_HW, kernel) > 0, target.figure_mask_THW[FIRST_FRAME:].shape)


def rendered(engine: LocalEngine, target: Sample, prompt: str, lora: Path | None) -> np.ndarray:
    request = RecipeRequest.model_validate(
        {"model": "wan-mini", "prompt": prompt, "seed": target.seed}
        | ({"loras": [{"path": str(lora)}]} if lora is not None else {})
    )
    recipe, inputs, _ = resolve(request, engine.card, Path(), None)
    image = Image.fromarray(target.input_image_HWC)
    refs = (ImageRef(role="input_image", sha256=image_sha256(image)),)
    return engine.render(replace(recipe, images=refs), replace(inputs, images={"input_image": image})).frames_THWC


def score(lora: Path, sheet: Path | None) -> dict[str, dict[str, float]]:
    """Means over the test clips."""
    engine = LocalEngine.load("wan-mini")
    scores: dict[str, list[tuple[float, float]]] = {"base": [], "base_fairy_prompt": [], "lora": []}
    rows = []
    for seed in filter(is_test_seed, range(NUM_GROUPS)):
        target, live = make_sample(seed, "fairy"), make_sample(seed, "live")
        mask = figure_mask(target)
        if seed in SHOWN:
            rows.append((f"{seed} target", target.video_THWC))
        for name, prompt, file in (
            ("base", live.prompt, None),
            ("base_fairy_prompt", target.prompt, None),
            ("lora", target.prompt, lora),
        ):
            frames = rendered(engine, target, prompt, file)
            pair = target.video_THWC[FIRST_FRAME:], frames[FIRST_FRAME:]
            scores[name].append((psnr(*pair, mask).pooled_db, ssim(*pair, mask).mean))
            if seed in SHOWN and name != "base_fairy_prompt":
                rows.append(({"base": "before", "lora": "after"}[name], frames))
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        save_image(sheet, contact_sheet(rows))
    return {
        name: {"psnr_db": round(float(np.mean([p for p, _ in pairs])), 4),
               "ssim": round(float(np.mean([s for _, s in pairs])), 4)}
        for name, pairs in scores.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", type=Path, help="score this file and train none")
    parser.add_argument("--no-layer-weights", action="store_true", help="the ablation: every place counts alike")
    parser.add_argument("--sheet", type=Path, help="write the before/after sheet here")
    parser.add_argument("--json", action="store_true", help="no readable form on stderr, only the JSON line")
    args = parser.parse_args()
    result: dict[str, object] = {"benchmark": "lora_cpu", **machine_facts()}
    training = TRAINING if args.no_layer_weights else (*TRAINING, *LAYER_WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        lora = args.lora
        if lora is None:
            data, prepared, run = (str(Path(folder) / name) for name in ("data", "prepared", "run"))
            result["synth_s"] = round(timed("synth", data, "--groups", str(NUM_GROUPS)), 1)
            result["prepare_s"] = round(timed("prepare", data, "--out", prepared, "--where", "world=fairy"), 1)
            result["seconds"] = round(timed("train", "--data", prepared, "--out", run, *training), 1)
            lora = Path(run) / "lora.safetensors"
            log = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
            result["steps"] = log[-1]["step"]
            result["heldout_loss"] = [line["heldout/loss"] for line in log if "heldout/loss" in line]
            result["step_s"] = round(float(np.median([line["step_s"] for line in log if "step_s" in line])), 3)
        result["lora_bytes"] = lora.stat().st_size
        scores = score(lora, args.sheet)
    result |= scores
    bases = [scores[name] for name in ("base", "base_fairy_prompt")]
    result["gain_db"] = round(scores["lora"]["psnr_db"] - max(base["psnr_db"] for base in bases), 4)
    result["gain_ssim"] = round(scores["lora"]["ssim"] - max(base["ssim"] for base in bases), 4)
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
