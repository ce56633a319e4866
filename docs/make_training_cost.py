"""Writes docs/training_cost.md: what `sakuga estimate --train` says, beside what others published.

Run: python docs/make_training_cost.py     (tests/unit/test_cost_training.py holds the page to it)
"""

from pathlib import Path

from sakuga.cost import find_device
from sakuga.cost.training import TrainEstimate, TrainPlan, estimate_training
from sakuga.training.config import TrainConfig
from sakuga.wan.catalogue import card

PAGE = Path(__file__).with_name("training_cost.md")
GIB = 2**30
T2V_SMALL, T2V, T2V_22 = "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.2-t2v-a14b"


def told(model: str, size: tuple[int, int, int], gpu: str = "h200", **settings: object) -> TrainEstimate:
    width, height, num_frames = size
    ranks = {name: settings.pop(name) for name in ("num_gpus", "fsdp", "micro_batch") if name in settings}
    config = TrainConfig.from_dict({"model": model, "rank": 32, "checkpointing": "recompute"} | settings)
    plan = TrainPlan(settings=config, width=width, height=height, num_frames=num_frames, **ranks)
    return estimate_training(plan, card(model), find_device(gpu))


def arithmetic() -> list[str]:
    """The plain arithmetic that was there before any operator was counted."""
    rows = [
        "| LoRA of rank 32 | PFLOP | s on an H200 | bf16 | + offload | int8 | int8 + offload |",
        "|---|---|---|---|---|---|---|",
    ]
    before = {
        (T2V_SMALL, (832, 480, 33)): (0.26, 5.5, 4.3, 4.2, 3.0),
        (T2V_SMALL, (832, 480, 81)): (1.10, 8.5, 5.7, 7.2, 4.4),
        (T2V_SMALL, (1280, 720, 81)): (5.07, 15.3, 8.8, 14.0, 7.5),
        (T2V, (832, 480, 81)): (6.49, 47.5, 35.0, 34.2, 21.7),
        (T2V, (1280, 720, 81)): (26.3, 71.7, 42.9, 58.4, 29.6),
    }
    for (model, size), (flops, *gibs) in before.items():
        ways = [(p, c) for p in ("bf16", "int8") for c in ("recompute", "offload")]
        ours = [told(model, size, base_precision=p, checkpointing=c) for p, c in ways]
        cells = [f"{one.parts.peak / GIB:.1f} ({gib})" for one, gib in zip(ours, gibs, strict=True)]
        name = f"{model}, {size[0]}x{size[1]}, {size[2]} frames"
        rows.append(
            f"| {name} | {ours[0].step_flops / 1e15:.2f} ({flops}) | {ours[0].step_s:.1f} | {' | '.join(cells)} |"
        )
    return rows


def published() -> list[str]:
    """Figures of others: only where the setting is told well enough to be asked for."""
    rows = ["| published | theirs | predicted |", "|---|---|---|"]
    small = (832, 480, 81)

    def row(what: str, theirs: str, one: TrainEstimate, *, seconds: bool) -> None:
        ours = f"{one.step_s:.1f} s" if seconds else f"{one.parts.peak / GIB:.1f} GiB"
        rows.append(f"| {what} | {theirs} | {ours} |")

    row(
        "1.3B r16 480p, A100 (user, DiffSynth-Studio#435)",
        "8.30 s",
        told(T2V_SMALL, small, "a100", rank=16),
        seconds=True,
    )
    row("1.3B LoRA, 61 frames (user, musubi#150; size not told, here 832x480)", "about 10 GB",
        told(T2V_SMALL, (832, 480, 61), "rtx4090"), seconds=False)  # fmt: skip
    row(
        "14B 720p LoRA on one 80 GB GPU (DiffSynth's example)",
        "not enough",
        told(T2V, (1280, 720, 81), "a100"),
        seconds=False,
    )
    sharded = {"mode": "full", "num_gpus": 8, "fsdp": True}
    full = told(T2V, (832, 480, 93), "h100", **sharded)
    once = told(T2V, (832, 480, 93), "h100", checkpointing="none", **sharded)
    speed = f"{once.step_flops / full.step_s / 1e12:.0f} TFLOP/s, recomputation not counted"
    rows.append(
        f"| 14B pretraining, 37,440 tokens, H100 (NeMo DFM) | 326 (Megatron), 176-229 (FSDP2) TFLOP/s | {speed} |"
    )
    return rows


def article() -> list[str]:
    """The article's frames on the card sizes that its machine may have had."""
    rows = ["| frames of 832x480 that fit | article | 80 GB | 141 GB |", "|---|---|---|---|"]
    for name, model, theirs, settings in (
        ("LoRA, Wan2.1 14B", T2V, 60, {}),
        ("LoRA, Wan2.2, both experts", T2V_22, 45, {}),
        ("LoRA, Wan2.2, one expert", T2V_22, 45, {"expert": "high"}),
        ("full, Wan2.1 14B, 8 GPUs with FSDP", T2V, 41, {"mode": "full", "num_gpus": 8, "fsdp": True}),
        ("full, Wan2.2, one expert, 8 GPUs with FSDP", T2V_22, 25,
         {"mode": "full", "num_gpus": 8, "fsdp": True, "expert": "high"}),
        ("full, Wan2.2, both experts, 8 GPUs with FSDP", T2V_22, 25, {"mode": "full", "num_gpus": 8, "fsdp": True}),
    ):  # fmt: skip
        for checkpointing in ("recompute", "offload"):
            fitting = [
                told(model, (832, 480, 81), gpu, checkpointing=checkpointing, **settings).largest_num_frames
                for gpu in ("h100", "h200")
            ]
            rows.append(
                f"| {name}, {checkpointing} | {theirs} | {' | '.join(str(count or 'none') for count in fitting)} |"
            )
    return rows


def offload() -> str:
    one, other = (told(T2V, (832, 480, 61), checkpointing=kind) for kind in ("recompute", "offload"))
    saved = 1 - other.parts.peak / one.parts.peak
    return f"Offload of checkpoints: about 20 % there, {saved:.0%} here, for a LoRA on Wan2.1 14B with 61 frames."


def page() -> str:
    text = PAGE.read_text(encoding="utf-8")
    tables = {"arithmetic": arithmetic(), "published": published(), "article": article(), "offload": [offload()]}
    for name, rows in tables.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        text = head + begin + "\n".join(rows) + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
