"""LoRA files in the key style of another program: what `wan/lora_file.py` reads, written again.

| style | keys | scale |
|---|---|---|
| diffsynth | `blocks.0.self_attn.q.lora_A.default.weight` | in B: DiffSynth takes alpha for the rank |
| kohya | `lora_unet_blocks_0_self_attn_q.lora_down.weight` | `.alpha` |
| diffusers | `transformer.blocks.0.attn1.to_q.lora_A.weight` | in B: diffusers takes alpha for the rank too |
| peft | `base_model.model.blocks.0.self_attn.q.lora_A.weight` in a folder | `adapter_config.json` |

LoHa, LoKr, DoRA and whole differences have a form in kohya's style alone (LyCORIS' names); elsewhere they are refused.

Run: pytest tests/unit/test_lora_convert.py
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from sakuga.errors import LoraError, OutputError, did_you_mean, shown
from sakuga.media import check_output_dir, write_bytes_atomic, write_json_atomic
from sakuga.wan.cards import ModelCard
from sakuga.wan.lora_file import (
    KOHYA_PREFIX,
    LOHA_PARTS,
    Change,
    Decomposed,
    Difference,
    Hadamard,
    Kronecker,
    Lora,
    LowRank,
    module_name,
)
from sakuga.wan.passport import KEY, LoraPassport
from sakuga.wan.shapes import CLIP_TOKENS

KEY_STYLES = ("diffsynth", "kohya", "diffusers", "peft")
_TO_DIFFUSERS = (
    (r"^(blocks\.\d+\.)self_attn\.", r"\1attn1."),
    (r"^(blocks\.\d+\.)cross_attn\.", r"\1attn2."),
    (r"(attn\d)\.(q|k|v)$", r"\1.to_\2"),
    (r"(attn\d)\.o$", r"\1.to_out.0"),
    (r"(attn\d)\.(k|v)_img$", r"\1.add_\2_proj"),
    (r"\.ffn\.0$", ".ffn.net.0.proj"),
    (r"\.ffn\.2$", ".ffn.net.2"),
    (r"^(time|text)_embedding\.0$", r"condition_embedder.\1_embedder.linear_1"),
    (r"^(time|text)_embedding\.2$", r"condition_embedder.\1_embedder.linear_2"),
    (r"^time_projection\.1$", "condition_embedder.time_proj"),
    (r"^head\.head$", "proj_out"),
)
_KINDS: dict[type, str] = {
    LowRank: "LoRA",
    Hadamard: "LoHa",
    Kronecker: "LoKr",
    Decomposed: "DoRA",
    Difference: "whole difference",
}


def convert_lora(lora: Lora, style: str, out: Path, *, force: bool = False) -> list[Path]:
    """Write a LoRA in one of `KEY_STYLES`: a file, or for peft a folder of two. The passport goes with it.

    Raises LoraError for what the style cannot say, OutputError where `out` exists (unless `force`) or cannot be
    written.
    """
    if style not in KEY_STYLES:
        raise LoraError(f"key style {shown(style)} is unknown{did_you_mean(style, KEY_STYLES)}; it is one of "
                        f"{', '.join(KEY_STYLES)}")  # fmt: skip
    passport = LoraPassport.from_metadata(lora.metadata)
    metadata = passport.to_metadata() if KEY in lora.metadata else {}
    _check_out(out, lora.path, force=force)
    if style == "peft":
        return _write_peft(lora, out, metadata)
    tensors: dict[str, torch.Tensor] = {}
    for name, change in lora.changes.items():
        module, _, parameter = name.rpartition(".")
        tensors |= _kohya(module, parameter, change) if style == "kohya" else _low_rank(lora, style, module, change)
    _save(tensors, out, metadata)
    return [out]


def card_shapes(card: ModelCard) -> dict[str, torch.Size]:
    """Names and shapes of the parameters of a card's DiT, of which nothing is loaded."""
    from diffsynth.models.wan_video_dit import WanModel

    shape = card.dit
    with torch.device("meta"):
        dit = WanModel(
            dim=shape.dim, in_dim=card.in_dim, ffn_dim=shape.ffn_dim, out_dim=shape.out_dim, text_dim=shape.text_dim,
            freq_dim=shape.freq_dim, eps=1e-6, patch_size=(1, 2, 2), num_heads=shape.num_heads,
            num_layers=shape.num_layers, has_image_input=shape.num_image_tokens > 0,
            has_image_pos_emb=shape.num_image_tokens > CLIP_TOKENS, has_ref_conv=shape.has_reference,
            add_control_adapter=shape.has_camera, seperated_timestep=shape.has_clean_frame,
        )  # fmt: skip
    return {name: parameter.shape for name, parameter in dit.named_parameters()}


def diffusers_name(module: str) -> str | None:
    """diffusers' name of one of Wan's layers; None for one that `module_name` would not find again."""
    name = module
    for pattern, theirs in _TO_DIFFUSERS:
        name = re.sub(pattern, theirs, name)
    return name if name != module and module_name(f"transformer.{name}", {}) == module else None


def _low_rank(lora: Lora, style: str, module: str, change: Change) -> dict[str, torch.Tensor]:
    """A and B with the scale in B, as DiffSynth and diffusers name them."""
    a, b, scale = _factors(lora, style, module, change)
    if style == "diffsynth":
        base, suffix = module, ".default.weight"
    else:
        named = diffusers_name(module)
        if named is None:
            raise LoraError(f"LoRA {lora.path} changes {module}, for which diffusers' style has no name; take kohya")
        base, suffix = f"transformer.{named}", ".weight"
    return {f"{base}.lora_A{suffix}": a, f"{base}.lora_B{suffix}": _scaled(b, scale)}


def _kohya(module: str, parameter: str, change: Change) -> dict[str, torch.Tensor]:
    """kohya's names, and LyCORIS' for what is no plain LoRA, whose scale goes into its first factor."""
    base = KOHYA_PREFIX + module.replace(".", "_")
    if isinstance(change, LowRank):
        alpha = torch.tensor(change.scale * change.rank, dtype=torch.float32)
        return {f"{base}.lora_down.weight": change.a, f"{base}.lora_up.weight": change.b, f"{base}.alpha": alpha}
    if isinstance(change, Decomposed):
        return _kohya(module, parameter, change.inner) | {f"{base}.dora_scale": change.magnitude}
    if isinstance(change, Hadamard):
        parts = (_scaled(change.w1_a, change.scale), change.w1_b, change.w2_a, change.w2_b)
        return {f"{base}.{name}": part for name, part in zip(LOHA_PARTS, parts, strict=True)}
    if isinstance(change, Kronecker):
        w1 = (_scaled(change.w1[0], change.scale), *change.w1[1:])
        sides = {"lokr_w1": w1, "lokr_w2": change.w2}
        return {
            f"{base}.{side}{letter}": factor
            for side, factors in sides.items()
            for letter, factor in zip(("_a", "_b") if len(factors) == 2 else ("",), factors, strict=True)
        }
    assert isinstance(change, Difference)
    return {f"{base}.{'diff' if parameter == 'weight' else 'diff_b'}": change.values}


def _write_peft(lora: Lora, out: Path, metadata: Mapping[str, str]) -> list[Path]:
    """A folder that `PeftModel.from_pretrained` loads. One alpha stands for all layers, so B has what differs."""
    changes = {name.removesuffix(".weight"): change for name, change in lora.changes.items()}
    found = {module: _factors(lora, "peft", module, change) for module, change in changes.items()}
    ranks = {module: len(a) for module, (a, _, _) in found.items()}
    first, (a, _, scale) = next(iter(found.items()))
    alpha = scale * ranks[first]
    tensors = {}
    for module, (a, b, scale) in found.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = _scaled(b, scale * ranks[module] / alpha)
    config = {
        "peft_type": "LORA",
        "r": ranks[first],
        "lora_alpha": alpha,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != ranks[first]},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    weights, beside = out / "adapter_model.safetensors", out / "adapter_config.json"
    _save(tensors, weights, metadata)
    write_json_atomic(beside, config)
    return [weights, beside]


def _factors(lora: Lora, style: str, module: str, change: Change) -> tuple[torch.Tensor, torch.Tensor, float]:
    if not isinstance(change, LowRank):
        kind = f"a {_KINDS[type(change)]}"
        raise LoraError(f"LoRA {lora.path} has {kind} for {module}, which {style}'s style cannot say; convert to kohya")
    return change.a, change.b, change.scale


def _scaled(factor: torch.Tensor, scale: float) -> torch.Tensor:
    """In the type that it has where that is exact, else in fp32."""
    exact = factor.float() * scale
    rounded = exact.to(factor.dtype)
    return rounded if torch.equal(rounded.float(), exact) else exact


def _check_out(out: Path, source: Path, *, force: bool) -> None:
    """Raises OutputError before anything is computed."""
    if out.exists() and out.resolve() in (source.resolve(), *source.resolve().parents):
        raise OutputError(f"{shown(out)} is, or holds, the LoRA that is to be converted; choose another name")
    if out.exists() and not force:
        raise OutputError(f"{shown(out)} exists; choose another name, or give --force to write over it")


def _save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    check_output_dir(path.parent)
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes_atomic(path, save(plain, dict(metadata)))


def lora_path(path: Path) -> Path:
    """The weights of a folder as peft writes it, or the file itself."""
    return path / "adapter_model.safetensors" if path.is_dir() else path


def key_style(keys: Sequence[str]) -> str:
    """Which of `KEY_STYLES` a file's keys are in, or comfyui, or plain for names without anything around them."""
    first = keys[0]
    if first.startswith(KOHYA_PREFIX):
        return "kohya"
    for prefix, style in (("base_model.model.", "peft"), ("transformer.", "diffusers")):
        if first.startswith(prefix):
            return style
    if first.startswith(("diffusion_model.", "model.diffusion_model.")):
        return "comfyui"
    return "diffsynth" if ".default." in first else "plain"


def describe_lora(lora: Lora) -> dict[str, object]:
    """What `sakuga lora show` prints."""
    with safe_open(lora.path, framework="pt") as file:
        keys = list(file.keys())
    layers = {re.sub(r"^blocks\.\d+\.", "", name.rpartition(".")[0]) for name in lora.changes}
    alphas = {round(change.scale * change.rank, 6) for change in lora.changes.values() if isinstance(change, LowRank)}
    passport = LoraPassport.from_metadata(lora.metadata)
    return {
        "file": str(lora.path),
        "bytes": lora.path.stat().st_size,
        "sha256": lora.sha256,
        "style": key_style(keys),
        "kinds": sorted({_KINDS[type(change)] for change in lora.changes.values()}),
        "ranks": list(lora.ranks),
        "alphas": sorted(alphas),
        "layers": len(lora.changes),
        "targets": sorted(layers),
        "passport": json.loads(passport.to_metadata()[KEY]),
    }
