"""Few steps with the acceleration LoRA against many without, on held-out fairies, scored before any mp4.

    python benchmarks/fewstep.py --count 8 --json

`reference` renders with the card's guidance and 50 steps, `steps.N` with the acceleration LoRA, N steps and guidance 1,
`plain.N` the same without that LoRA; the fairy LoRA is in all of them. `time_ratio` is the reference's denoise seconds
over this one's (medians over the seeds, whose renders take turns), `psnr_db` and `ssim` compare all frames with the
drawn target, `ref_ssim` with the reference render of the same seed, `sharpness` is gradient energy over the target's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common import machine_facts, print_result  # benchmarks/common.py
from PIL import Image

from sakuga.engine import LocalEngine
from sakuga.engine.resolve import resolve
from sakuga.media import contact_sheet, image_sha256, save_image
from sakuga.quality import psnr, ssim
from sakuga.recipe import ImageRef, LoraRequest, RecipeRequest
from sakuga.synth import HELD_OUT_SEED, Sample, make_sample

STYLE = "fairy"
REFERENCE_STEPS = 50
DISTILLED_STEPS = (4, 8)
PLAIN_STEPS = (1, 2, 4, 8)
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to render a seed."""

    num_steps: int
    guidance: float
    loras: tuple[LoraRequest, ...]


def ways(guidance: float, acceleration: Sequence[LoraRequest]) -> dict[str, Way]:
    """The reference first; `acceleration` has the LoRA of each of `DISTILLED_STEPS`."""
    style = LoraRequest(name=STYLE)
    found = {"reference": Way(num_steps=REFERENCE_STEPS, guidance=guidance, loras=(style,))}
    for steps, lora in zip(DISTILLED_STEPS, acceleration, strict=True):
        found[f"steps.{steps}"] = Way(num_steps=steps, guidance=1.0, loras=(style, lora))
    for steps in PLAIN_STEPS:
        found[f"plain.{steps}"] = Way(num_steps=steps, guidance=1.0, loras=(style,))
    return found


def render(engine: LocalEngine, target: Sample, seed: int, way: Way) -> tuple[np.ndarray, float]:
    """Frames and denoise seconds."""
    request = RecipeRequest(
        model="wan-mini", prompt=target.prompt, seed=seed, num_inference_steps=way.num_steps,
        guidance_scale=way.guidance, loras=list(way.loras),
    )  # fmt: skip
    recipe, inputs, _ = resolve(request, engine.card, Path())
    image = Image.fromarray(target.input_image_HWC)
    refs = (ImageRef(role="input_image", sha256=image_sha256(image)),)
    video = engine.render(replace(recipe, images=refs), replace(inputs, images={"input_image": image}))
    return video.frames_THWC, video.seconds["denoise"]


def gradient_energy(frames_THWC: np.ndarray) -> float:
    """Mean squared difference of neighbouring pixels' luma, along rows and along columns."""
    luma_THW = frames_THWC.astype(np.float32) @ LUMA
    return float(np.square(np.diff(luma_THW, axis=1)).mean() + np.square(np.diff(luma_THW, axis=2)).mean())


def score(target: Sample, reference_THWC: np.ndarray, frames_THWC: np.ndarray, seconds: float) -> dict[str, float]:
    return {
        "denoise_s": seconds,
        "psnr_db": psnr(target.video_THWC, frames_THWC).pooled_db,
        "ssim": ssim(target.video_THWC, frames_THWC).mean,
        "ref_ssim": ssim(reference_THWC, frames_THWC).mean,
        "sharpness": gradient_energy(frames_THWC) / gradient_energy(target.video_THWC),
    }


def summary(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict]:
    """Means over the seeds, medians of seconds, and what the few steps lose and gain."""
    means = {name: {key: float(np.mean([row[key] for row in own])) for key in own[0]} for name, own in rows.items()}
    for name, own in rows.items():
        means[name]["denoise_s"] = float(np.median([row["denoise_s"] for row in own]))
    reference = means["reference"]
    for name, mean in means.items():
        mean["time_ratio"] = reference["denoise_s"] / mean["denoise_s"]
        if name.startswith("steps."):
            mean["ssim_loss"] = reference["ssim"] - mean["ssim"]
            mean["ref_gain"] = mean["ref_ssim"] - means["plain" + name.removeprefix("steps")]["ref_ssim"]
            mean["sharpness_vs_reference"] = mean["sharpness"] / reference["sharpness"]
    rounded = {name: {key: round(value, 4) for key, value in mean.items()} for name, mean in means.items()}
    nested: dict[str, dict] = {"reference": rounded.pop("reference"), "steps": {}, "plain": {}}
    for name, mean in rounded.items():
        kind, steps = name.split(".")
        nested[kind][steps] = mean
    return nested


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8, help="held-out seeds")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="first seed; below 2^26 it is validation")
    parser.add_argument("--loras", type=Path, nargs=2, help="files of acceleration LoRAs for 4 and 8 steps")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet into this folder")
    parser.add_argument("--json", action="store_true", help="no readable form on stderr, only the JSON line")
    args = parser.parse_args()
    engine = LocalEngine.load("wan-mini")
    files = [LoraRequest(path=str(path.resolve())) for path in args.loras or ()]
    shipped = [LoraRequest(name=f"fast{steps}") for steps in DISTILLED_STEPS]
    all_ways = ways(engine.card.guidance_scale, files or shipped)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in all_ways}
    sheet = []
    render(engine, make_sample(args.seed, "fairy"), args.seed, all_ways["plain.1"])  # the first render warms up
    for seed in range(args.seed, args.seed + args.count):
        target = make_sample(seed, "fairy")
        frames: dict[str, np.ndarray] = {}
        for name, way in all_ways.items():
            frames[name], seconds = render(engine, target, seed, way)
            rows[name].append(score(target, frames["reference"], frames[name], seconds))
        sheet += [
            (f"{seed - args.seed} target", target.video_THWC),
            (f"{REFERENCE_STEPS} steps, guided", frames["reference"]),
            ("4 steps, distilled", frames["steps.4"]),
            ("4 steps, plain", frames["plain.4"]),
        ]
        print(
            f"{seed}: " + ", ".join(f"{name} {own[-1]['ref_ssim']:.3f}" for name, own in rows.items()), file=sys.stderr
        )
    result = {"benchmark": "fewstep", "count": args.count, "seed": args.seed, **machine_facts(), **summary(rows)}
    if args.sheet:
        args.sheet.mkdir(parents=True, exist_ok=True)
        save_image(args.sheet / "fewstep.png", contact_sheet(sheet[:16]))
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
