"""The receipt of a render: what made this video, as plain values for JSON."""

import platform
from collections.abc import Sequence
from importlib.metadata import version

import torch

import sakuga
from sakuga.engine.state import Video
from sakuga.recipe import RenderRecipe
from sakuga.wan.loading import LoadedModel

RECEIPT_VERSION = 2


def build_receipt(
    *,
    model: LoadedModel,
    recipe: RenderRecipe,
    video: Video,
    attention_trials: Sequence[dict[str, object]],
    loras: Sequence[dict[str, object]],
) -> dict[str, object]:
    """Recipe, key, weights, versions, seconds by stage, attention, LoRAs, and notes on what fell short of the asked."""
    device = torch.device(model.pipe.device)
    return {
        "receipt_version": RECEIPT_VERSION,
        "key": recipe.render_key,
        "recipe": recipe.as_dict(),
        "weights": {"sha256": model.weights_sha256, "files": dict(model.file_sha256)},
        "loras": list(loras),
        "attention": {"asked": recipe.attention, "used": video.attention, "trials": list(attention_trials)},
        "plan": video.plan,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_threads": torch.get_num_threads(),
        "versions": versions(),
        "seconds": {stage: round(seconds, 4) for stage, seconds in video.seconds.items()},
        "step_s": [round(seconds, 4) for seconds in video.step_s],
        "num_blocks_run": video.num_blocks_run,
        "video": {
            "width": int(video.frames_THWC.shape[2]),
            "height": int(video.frames_THWC.shape[1]),
            "num_frames": len(video.frames_THWC),
            "fps": video.fps,
        },
        "notes": list(video.notes),
    }


def versions() -> dict[str, str]:
    """Of what decides the picture."""
    return {
        "sakuga": sakuga.__version__,
        "torch": torch.__version__,
        "diffsynth": version("diffsynth"),
        "python": platform.python_version(),
    }
