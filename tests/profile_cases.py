"""A promoted profile as tests of the registry, the API and the farm send it."""

from sakuga.tuning.figures import parse_bars
from sakuga.tuning.profiles import SpeedProfile

SIZE = {"width": 32, "height": 32, "num_frames": 5}


def speed_profile(name: str = "fast", **changes: object) -> SpeedProfile:
    given: dict[str, object] = {
        "name": name, "model": "wan-mini", **SIZE, "fields": {"num_inference_steps": 3, "guidance_scale": 1.0},
        "reference": {"num_inference_steps": 6, "guidance_scale": 1.0}, "bars": parse_bars({"ref_ssim": {"min": 0.5}}),
        "measured": {"ref_ssim": 0.9, "seconds": 1.0, "reference_seconds": 2.0, "speedup": 2.0},
    }  # fmt: skip
    return SpeedProfile(**given | changes)  # ty: ignore[invalid-argument-type]
