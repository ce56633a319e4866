"""How long until someone without a GPU sees a dancer: the demo as a whole, one warm render, the data generator.

    python benchmarks/first_light.py --json

`demo_s` is `sakuga demo` from start to end after the install; `render_s` one 33-frame, 20-step, guided image-to-video
render at 128x128 with the model loaded (median of `--repeats`); `synth_clips_per_s_core` clips of 33 frames at
128x128, both worlds in turn, on one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine_facts, print_result

from sakuga.engine import LocalEngine
from sakuga.engine.resolve import resolve
from sakuga.media import save_image
from sakuga.recipe import RecipeRequest
from sakuga.synth import HELD_OUT_SEED, make_sample

_SYNTH = """
import json, time, cv2
cv2.setNumThreads(1)
from sakuga.synth import make_sample
make_sample(0)
began = time.process_time()
for seed in range({count}):
    make_sample(seed, "fairy" if seed % 2 else "live")
print(json.dumps({count} / (time.process_time() - began)))
"""


def time_demo() -> dict[str, float]:
    """Wall seconds of `sakuga demo` into an empty folder, and how many of its videos are there afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        began = time.monotonic()
        subprocess.run([str(Path(sys.executable).parent / "sakuga"), "demo", "--out", str(out)], check=True,
                       stdout=sys.stderr)  # fmt: skip
        took = time.monotonic() - began
        return {"demo_s": round(took, 2), "demo_videos": len(list(out.rglob("*.mp4")))}


def time_render(repeats: int) -> dict[str, float]:
    """Median seconds of one guided image-to-video render, with its stages."""
    from PIL import Image

    engine = LocalEngine.load("wan-mini")
    sample = make_sample(HELD_OUT_SEED)
    with tempfile.TemporaryDirectory() as folder:
        save_image(Path(folder) / "first.png", Image.fromarray(sample.input_image_HWC))
        request = RecipeRequest(
            model="wan-mini", prompt=sample.prompt, input_image="first.png", num_inference_steps=20, seed=1,
            num_frames=33, guidance_scale=max(engine.card.guidance_scale, 1.5),
        )  # fmt: skip
        recipe, inputs, _ = resolve(request, engine.card, Path(folder))
    engine.render(recipe, inputs)
    videos = [engine.render(recipe, inputs) for _ in range(repeats)]
    median = sorted(videos, key=lambda video: video.seconds["total"])[len(videos) // 2]
    return {"render_s": round(statistics.median(video.seconds["total"] for video in videos), 3)} | {
        f"render_{stage}_s": round(seconds, 3) for stage, seconds in median.seconds.items() if stage != "total"
    }


def time_synth(count: int) -> dict[str, float]:
    """Clips a second in a process of its own with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", _SYNTH.format(count=count)], env=environment, check=True,
                         capture_output=True, text=True)  # fmt: skip
    return {"synth_clips_per_s_core": round(float(run.stdout.splitlines()[-1]), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--synth-count", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="no readable form on stderr, only the JSON line")
    args = parser.parse_args()
    result = {"benchmark": "first_light", **machine_facts()}
    result |= time_synth(args.synth_count)
    result |= time_demo()
    result |= time_render(args.repeats)
    print_result(result, as_json=args.json)


if __name__ == "__main__":
    main()
