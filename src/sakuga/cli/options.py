"""Options that several commands share, under the recipe's own field names.

An option that is not given stays None and is left to the manifest row or to the model's card.
"""

from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="A card of `sakuga models list`.")]
Weights = Annotated[
    str | None, typer.Option(help="Folder or s3://bucket/prefix with the files of the card; embedded if not given.")
]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", help="NAME, NAME:WEIGHT or a .safetensors path; may be repeated.")
]
NegativePrompt = Annotated[str | None, typer.Option(help="What the video should not show.")]
Width = Annotated[int | None, typer.Option(help="Pixels.")]
Height = Annotated[int | None, typer.Option(help="Pixels.")]
NumFrames = Annotated[int | None, typer.Option("--num-frames", "--frames", help="4n+1; 1 for a picture.")]
Fps = Annotated[int | None, typer.Option(help="Frames per second of the video.")]
Steps = Annotated[int | None, typer.Option("--num-inference-steps", "--steps", help="Denoise steps.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", "--guidance", help="1 switches guidance off.")]
FlowShift = Annotated[float | None, typer.Option(help="Shift of the noise schedule.")]
Seed = Annotated[int | None, typer.Option(help="0 to 2^63-1; drawn or made from the row if not given.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16, fp16, int8, int8-dynamic, fp8 or fp8-dynamic.")]
CameraDirection = Annotated[
    str | None,
    typer.Option("--camera-direction", "--camera", help="Left, Right, Up, Down, LeftUp, LeftDown, RightUp, RightDown."),
]
CameraSpeed = Annotated[float | None, typer.Option(help="How far the camera goes in a frame; 1/54 if not given.")]
MotionBucket = Annotated[int | None, typer.Option(help="0 (slow) to 100 (fast), for models with speed control.")]
AttentionName = Annotated[
    str | None,
    typer.Option("--attention", help="auto, or a kernel: sdpa, cudnn, flash2, flash3, flash4, xformers, sage."),
]
StepCacheText = Annotated[
    str | None,
    typer.Option("--step-cache", help="KIND:THRESHOLD, such as forecast:0.03 or teacache:0.1."),
]
NumThreads = Annotated[
    int | None, typer.Option(min=1, help="PyTorch threads of one worker; without it the workers share the cores.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
WorkerDevice = Annotated[str, typer.Option(help="cpu, or cuda: a GPU for each worker.")]


def given(**fields: object) -> dict[str, object]:
    """The fields that the user set."""
    return {name: value for name, value in fields.items() if value is not None and value != []}


Tiling = Annotated[
    bool,
    typer.Option("--tiling", help="The VAE in tiles: less memory, and by a little another picture."),
]
Memory = Annotated[
    str, typer.Option(help="Where weights wait: resident, components, layers:BYTES (as in layers:12GB) or disk.")
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Blocks of the DiT through torch.compile; not verified, so with --unverified.")
]
HotLoras = Annotated[bool, typer.Option("--hot-loras", help="LoRAs beside the weights, not fused into them.")]
Unverified = Annotated[
    bool, typer.Option("--unverified", help="Start combinations that were never held to the plain render.")
]
