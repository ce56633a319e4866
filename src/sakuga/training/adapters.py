"""LoRAs that are trained: put into the experts of a model by peft, taken out as files that every loader reads.

What is trained is fp32 whatever the base is: under autocast it computes in bf16 all the same, and small updates are not
rounded away (in bf16 at a rate of 2e-5, 69 % of a LoRA's entries never move).

Run: pytest tests/unit/test_training_adapters.py
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from sakuga.errors import LoraError
from sakuga.media import atomic_file
from sakuga.training.config import TrainConfig
from sakuga.wan.lora_file import Lora, LowRank, fit_lora
from sakuga.wan.passport import LoraPassport

EXPORT_DTYPE = torch.float16
"""Ten bits of mantissa where bf16 has seven; LoRAs stay far inside its range."""
ADAPTER = "default"
"""peft's name of the adapter that is trained; DiffSynth's key style keeps it."""
STYLE = "style"
"""Of one that is frozen beside it in a distillation."""


def add_lora(expert: torch.nn.Module, config: TrainConfig, start: Path | None = None) -> None:
    """Freeze a DiT and put an adapter beside its target layers: one that does nothing yet, or the LoRA file `start`.

    Raises LoraError when no target layer is there, or when the file is no LoRA of these layers and this rank.
    """
    lora_file = None if start is None else fit_lora(start, plain_shapes(expert))
    expert.requires_grad_(False)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.scale * config.rank,  # ty: ignore[invalid-argument-type]  # peft divides it, no more
        target_modules=list(config.targets),
        lora_dropout=0.0,
    )
    inject_adapter_in_model(lora, expert, adapter_name=ADAPTER)
    trained = [parameter for parameter in expert.parameters() if parameter.requires_grad]
    if not trained:
        raise LoraError(f"the model has none of the layers {', '.join(config.targets)}; name others with targets")
    for parameter in trained:
        parameter.data = parameter.data.float()
    for module in expert.modules():
        if isinstance(module, LoraLayer):
            # To fp32 and, under autocast, back to bf16: a copy for each adapter, and the same product.
            module.cast_input_dtype_enabled = False
    if lora_file is not None:
        fill(expert, lora_file, config)


def add_style(expert: torch.nn.Module, path: Path) -> None:
    """Put a LoRA file beside the adapter that is there, frozen and switched off. Raises LoraError.

    The layers that it changes are those of the adapter, or some of them.
    """
    lora = fit_lora(path, plain_shapes(expert))
    layers = {target.removesuffix(".weight"): change for target, change in lora.changes.items()}
    wrapped = {name for name, module in expert.named_modules() if isinstance(module, LoraLayer)}
    if not set(layers) <= wrapped:
        raise LoraError(f"LoRA {path} changes {min(set(layers) - wrapped)}, which the run does not; add it to targets")
    ranks = {change.rank for change in layers.values() if isinstance(change, LowRank)}
    if len(ranks) != 1 or not all(isinstance(change, LowRank) for change in layers.values()):
        raise LoraError(f"LoRA {path} is not of one rank, which a style beside a distillation must be; take another")
    rank = ranks.pop()
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what is meant
        inject_adapter_in_model(config, expert, adapter_name=STYLE)
    parameters = dict(expert.named_parameters())
    with torch.no_grad():
        for layer, change in layers.items():
            assert isinstance(change, LowRank)
            parameters[_key(layer, "A", STYLE)].copy_(change.a)
            parameters[_key(layer, "B", STYLE)].copy_(change.b.float() * change.scale)
    activate(expert, [ADAPTER])


def remove_lora(expert: torch.nn.Module) -> None:
    """Take all adapters out; the layers below them are those of before, to the bit."""
    for name, module in list(expert.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, own = name.rpartition(".")
            setattr(expert.get_submodule(parent), own, module.get_base_layer())
    if hasattr(expert, "peft_config"):
        del expert.peft_config


def activate(expert: torch.nn.Module, names: Sequence[str]) -> None:
    """Switch on these adapters and no others; only `ADAPTER` is ever trained."""
    for module in expert.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(list(names), inference_mode=True)
    for name, parameter in expert.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(ADAPTER in names and f".{ADAPTER}." in name)


def plain_shapes(expert: torch.nn.Module) -> dict[str, torch.Size]:
    """Of a DiT's own parameters, under the names that they had before peft wrapped its layers."""
    return {
        name.replace(".base_layer", ""): parameter.shape
        for name, parameter in expert.named_parameters()
        if ".lora_" not in name
    }


def make_trainable(expert: torch.nn.Module) -> None:
    """All weights of a DiT, in fp32."""
    expert.float().requires_grad_(True)


def lora_state(named: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """An adapter's tensors as a file has them: the scale baked in, since DiffSynth takes alpha for the rank.

    `named` are those of one expert, such as `blocks.0.self_attn.q.lora_A.default.weight`.
    """
    found = {}
    for name, tensor in named.items():
        if ".lora_" in name:
            value = tensor.detach().to("cpu", torch.float32)
            found[name] = (value * scale if ".lora_B." in name else value).to(EXPORT_DTYPE).contiguous()
    return found


def save_lora(named: Mapping[str, torch.Tensor], scale: float, path: Path, passport: LoraPassport) -> None:
    """Write one expert's adapter in DiffSynth's key style. Raises OutputError."""
    with atomic_file(path) as temporary:
        save_file(lora_state(named, scale), temporary, metadata=passport.to_metadata())
    path.chmod(0o644)  # safetensors writes 0600, and others have to read it


def save_weights(named: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a fine-tuned DiT in bf16, under the names that DiffSynth's loader knows. Raises OutputError."""
    with atomic_file(path) as temporary:
        save_file({name: value.to(torch.bfloat16).contiguous() for name, value in named.items()}, temporary)
    path.chmod(0o644)


def fill(expert: torch.nn.Module, lora: Lora, config: TrainConfig) -> None:
    """Put a LoRA's values into the adapter that the expert has. Raises LoraError where layers or ranks differ."""
    parameters = dict(expert.named_parameters())
    wanted = {name.removesuffix(_key("", "A")) for name in parameters if name.endswith(_key("", "A"))}
    given = {target.removesuffix(".weight") for target in lora.changes}
    if given != wanted:
        raise LoraError(
            f"LoRA {lora.path} changes {len(given)} layers and the run would train {len(wanted)}; "
            "give the targets that it was trained with"
        )
    with torch.no_grad():
        for target, change in lora.changes.items():
            if not isinstance(change, LowRank) or change.rank != config.rank:
                raise LoraError(
                    f"LoRA {lora.path} has rank {change.rank} in {target} and the run has {config.rank}; give that rank"
                )
            name = target.removesuffix(".weight")
            parameters[_key(name, "A")].copy_(change.a)
            parameters[_key(name, "B")].copy_(change.b.float() * (change.scale / config.scale))


def _key(layer: str, part: str, adapter: str = ADAPTER) -> str:
    return f"{layer}.lora_{part}.{adapter}.weight"
