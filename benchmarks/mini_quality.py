"""How well Wan-mini dances, on held-out seeds, scored before any mp4.

    python benchmarks/mini_quality.py --count 16 --json

`i2v` renders live dancers from their first frame and prompt, `fairy` the same with the fairy LoRA on fairy targets.
Rivals: `frozen` repeats the first frame, `vae` only encodes and decodes the target, the ceiling of any render. Figure
metrics count where a dancer is in any frame of the target, and 4 pixels around. `t2v` asks for named colours and looks
whether hair and outfit have them. `geometries` has `i2v` in other sizes and lengths, on fewer seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from common import machine_facts, print_result  # benchmarks/common.py
from PIL import Image

from sakuga.engine import LocalEngine, RenderInputs
from sakuga.engine.local import to_frames
from sakuga.engine.resolve import resolve
from sakuga.media import contact_sheet, image_sha256, save_image
from sakuga.quality import flicker, motion, psnr, ssim, vmaf
from sakuga.quality.adherence import colour_boxes, nearest_colour
from sakuga.recipe import ImageRef, RecipeRequest, RenderRecipe
from sakuga.synth import HAIR_COLOURS, HELD_OUT_SEED, OUTFIT_COLOURS, Sample, World, make_sample

DILATION_PX = 4
T2V_FRAMES = 17
"""Text-to-video clips are half as long: only colours are read off them."""
GEOMETRIES = ((96, 160, 33), (160, 96, 33), (128, 128, 17), (128, 128, 77))
"""Width, height and frames besides the card's 128x128 with 33."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    count: int
    seed: int
    steps: int | None
    guidance: float | None
    t2v_count: int
    weights: Path | None


def render(
    engine: LocalEngine, options: Options, prompt: str, seed: int, image_HWC: np.ndarray | None = None, **fields: object
) -> tuple[np.ndarray, float]:
    """Frames and seconds of one render; `image_HWC` is the first frame."""
    request = RecipeRequest.model_validate(
        {"model": "wan-mini", "prompt": prompt, "seed": seed, "num_inference_steps": options.steps}
        | ({} if options.guidance is None else {"guidance_scale": options.guidance})
        | fields
    )
    recipe, inputs, _ = resolve(request, engine.card, Path(), options.weights)
    if image_HWC is not None:
        recipe, inputs = _with_first_frame(recipe, inputs, image_HWC)
    began = time.monotonic()
    video = engine.render(recipe, inputs)
    return video.frames_THWC, time.monotonic() - began


def _with_first_frame(
    recipe: RenderRecipe, inputs: RenderInputs, image_HWC: np.ndarray
) -> tuple[RenderRecipe, RenderInputs]:
    image = Image.fromarray(image_HWC)
    refs = (ImageRef(role="input_image", sha256=image_sha256(image)),)
    return replace(recipe, images=refs), replace(inputs, images={"input_image": image})


def through_vae(engine: LocalEngine, video_THWC: np.ndarray) -> np.ndarray:
    """The target, encoded and decoded."""
    vae = engine.model.pipe.vae
    video = torch.from_numpy(video_THWC).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        return to_frames(vae.decode(vae.encode(video, device=engine.device), device=engine.device)[0])


def score(target: Sample, frames_THWC: np.ndarray) -> dict[str, float]:
    """All figures of one video against its target."""
    union_HW = np.asarray(target.figure_mask_THW.any(axis=0), dtype=np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * DILATION_PX + 1, 2 * DILATION_PX + 1))
    mask_THW = np.broadcast_to(cv2.dilate(union_HW, kernel) > 0, target.figure_mask_THW.shape)
    return {
        "psnr_db": psnr(target.video_THWC, frames_THWC).pooled_db,
        "ssim": ssim(target.video_THWC, frames_THWC).mean,
        "figure_psnr_db": psnr(target.video_THWC, frames_THWC, mask_THW).pooled_db,
        "figure_ssim": ssim(target.video_THWC, frames_THWC, mask_THW).mean,
        "vmaf": vmaf(target.video_THWC, frames_THWC, target.fps).mean,
        "flicker": flicker(frames_THWC),
        "motion": motion(frames_THWC),
    }


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def score_world(
    engine: LocalEngine,
    options: Options,
    world: World,
    lora: str | None,
    width: int = 128,
    height: int = 128,
    num_frames: int = 33,
) -> tuple[dict, list]:
    """Means of i2v, frozen and vae over the held-out seeds, what separates them, and the videos for the sheet."""
    rows: dict[str, list[dict[str, float]]] = {"i2v": [], "frozen": [], "vae": [], "target": []}
    seconds, sheet = [], []
    for seed in range(options.seed, options.seed + options.count):
        target = make_sample(seed, world, width=width, height=height, num_frames=num_frames)
        frames, took = render(
            engine, options, target.prompt, seed, target.input_image_HWC,
            loras=[lora] if lora else [], width=width, height=height, num_frames=num_frames,
        )  # fmt: skip
        seconds.append(took)
        frozen = np.repeat(target.video_THWC[:1], len(target.video_THWC), axis=0)
        rows["i2v"].append(score(target, frames))
        rows["frozen"].append(score(target, frozen))
        rows["vae"].append(score(target, through_vae(engine, target.video_THWC)))
        rows["target"].append({"motion": motion(target.video_THWC)})
        dance = f"{target.choreography.tempo} {target.choreography.dance}"
        sheet += [(f"{seed - options.seed} target: {dance}", target.video_THWC), (f"{world} render", frames)]
        print(f"{world} {seed} {dance}: {rows['i2v'][-1]['figure_psnr_db']:.2f} dB, "
              f"frozen {rows['frozen'][-1]['figure_psnr_db']:.2f}", file=sys.stderr)  # fmt: skip
    means: dict = {name: mean_of(scores) for name, scores in rows.items()}
    i2v, frozen = means["i2v"], means["frozen"]
    i2v["gain_db"] = round(i2v["figure_psnr_db"] - frozen["figure_psnr_db"], 4)
    i2v["ssim_gain"] = round(i2v["figure_ssim"] - frozen["figure_ssim"], 4)
    i2v["motion_ratio"] = round(i2v["motion"] / means.pop("target")["motion"], 4)
    means["seconds_per_video"] = round(float(np.mean(seconds)), 3)
    return means, sheet


def score_geometries(engine: LocalEngine, options: Options) -> dict[str, dict[str, float]]:
    """What i2v gains over the frozen frame and how much it moves, in every one of `GEOMETRIES`."""
    found = {}
    for width, height, num_frames in GEOMETRIES:
        i2v = score_world(engine, options, "live", None, width, height, num_frames)[0]["i2v"]
        found[f"{width}x{height}x{num_frames}"] = {name: i2v[name] for name in ("gain_db", "motion_ratio")}
    return found


def colour_hits(engine: LocalEngine, options: Options) -> tuple[dict[str, float], list]:
    """How often hair and outfit have the colour that the prompt names; `target` is the same on the true video."""
    found, wanted, on_target, sheet = [], [], [], []
    for seed in range(options.seed + 1000, options.seed + 1000 + options.t2v_count):
        target = make_sample(seed, "live", num_frames=T2V_FRAMES)
        frames, _ = render(engine, options, target.prompts[0], seed, num_frames=T2V_FRAMES)
        wanted.append((target.figure.hair_colour, target.figure.outfit_colour))
        hair_box, outfit_box = colour_boxes(target.choreography, frames.shape[2], frames.shape[1])
        for frames_of, into in ((frames, found), (target.video_THWC, on_target)):
            hair = nearest_colour(frames_of[0], hair_box, HAIR_COLOURS)
            into.append((hair, nearest_colour(frames_of[0], outfit_box, OUTFIT_COLOURS)))
        sheet.append((f"{wanted[-1][0]} hair, {wanted[-1][1]} outfit", frames))

    def rate(guesses: list, truths: list) -> float:
        return round(float(np.mean([[g == t for g, t in zip(a, b)] for a, b in zip(guesses, truths)])), 4)

    shuffled = [wanted[i] for i in np.random.default_rng(options.seed).permutation(len(wanted))]
    return {
        "colour_hit_rate": rate(found, wanted),
        "hair_hit_rate": rate([f[:1] for f in found], [w[:1] for w in wanted]),
        "outfit_hit_rate": rate([f[1:] for f in found], [w[1:] for w in wanted]),
        "chance_rate": rate(found, shuffled),
        "target_rate": rate(on_target, wanted),
        "num_prompts": options.t2v_count,
    }, sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16, help="held-out seeds a world")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="first seed; below 2^26 it is validation")
    parser.add_argument("--steps", type=int, help="denoise steps instead of the card's")
    parser.add_argument("--guidance", type=float, help="guidance scale instead of the card's")
    parser.add_argument("--t2v-count", type=int, default=50)
    parser.add_argument("--geometry-count", type=int, default=2, help="seeds a geometry; 0 skips them")
    parser.add_argument("--weights", type=Path, help="a model folder instead of the embedded one")
    parser.add_argument("--skip", nargs="*", default=[], choices=("i2v", "fairy", "t2v"))
    parser.add_argument("--sheet", type=Path, help="write contact sheets into this folder")
    parser.add_argument("--json", action="store_true", help="no readable form on stderr, only the JSON line")
    args = parser.parse_args()
    options = Options(
        count=args.count, seed=args.seed, steps=args.steps, guidance=args.guidance, t2v_count=args.t2v_count,
        weights=args.weights,
    )  # fmt: skip
    engine = LocalEngine.load("wan-mini", args.weights)
    result: dict = {"benchmark": "mini_quality", "count": args.count, "seed": args.seed,
                    "held_out": args.seed >= HELD_OUT_SEED, **machine_facts()}  # fmt: skip
    sheets = {}
    if "i2v" not in args.skip:
        live, sheets["live"] = score_world(engine, options, "live", None)
        result |= live
    if "fairy" not in args.skip:
        result["fairy"], sheets["fairy"] = score_world(engine, options, "fairy", "fairy")
    if "t2v" not in args.skip:
        result["t2v"], sheets["t2v"] = colour_hits(engine, options)
    if args.geometry_count:
        result["geometry_count"] = args.geometry_count
        result["geometries"] = score_geometries(engine, replace(options, count=args.geometry_count))
    for name, rows in sheets.items() if args.sheet else ():
        args.sheet.mkdir(parents=True, exist_ok=True)
        save_image(args.sheet / f"mini_{name}.png", contact_sheet(rows[:16]))
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
