"""Load any card's weights into DiffSynth's `WanVideoPipeline`, from a folder, an S3 prefix or the package.

DiffSynth recognises a checkpoint by its key names and shapes, tells what it does on stdout and downloads what it
lacks. Here the files are found and checked first, the talk goes to the log and nothing is downloaded behind the
user's back.     Run: pytest tests/unit/test_loading.py
"""

import contextlib
import io
import json
import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sakuga.errors import WeightsError
from sakuga.storage import open_storage
from sakuga.wan.cards import ModelCard
from sakuga.wan.device import check_device, memory_of
from sakuga.wan.mapped import mapped_loads, mapped_tensors
from sakuga.wan.memory import MemoryPlan
from sakuga.wan.precision import Precision, check_precision, quantization
from sakuga.wan.weights import WeightPart, check_file, find_parts, weights_identity

if TYPE_CHECKING:
    from diffsynth.core import ModelConfig
    from diffsynth.pipelines.wan_video import WanVideoPipeline

logger = logging.getLogger(__name__)


STAGES = ("encode", "denoise", "decode")
PARTS_OF_STAGES = {
    "encode": ("text_encoder", "vae", "image_encoder", "motion_controller"),
    "denoise": ("dit", "dit2"),
    "decode": ("vae",),
}
"""Parts whose weights a stage needs; VACE comes in the files of the DiT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSet:
    """The checked files of a card on this machine, not yet loaded."""

    card: ModelCard
    parts: tuple[WeightPart, ...]
    sha256: str
    """Over all files: `weights_sha256` of a recipe."""
    file_sha256: dict[str, str]
    """Of each file, by "part/name"."""
    lora_dir: Path | None = None
    """Where the LoRAs that the card names lie."""
    lora_sha256: dict[str, str] | None = None
    """What card.json says of those in the package, by file name; None for weights that the user brought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A card with its weights in memory."""

    card: ModelCard
    pipe: "WanVideoPipeline"
    precision: str
    weights_sha256: str
    file_sha256: dict[str, str]
    memory: MemoryPlan = field(default_factory=MemoryPlan)
    dit_files: tuple[tuple[Path, ...], ...] = ()
    """Of each expert; empty for a model that was not loaded from safetensors files."""
    stages: tuple[str, ...] = STAGES
    """Those that it has the weights for."""

    @property
    def experts(self) -> tuple[torch.nn.Module, ...]:
        """The DiT, or the high-noise and the low-noise one."""
        return tuple(dit for dit in (self.pipe.dit, self.pipe.dit2) if dit is not None)

    @property
    def num_heads(self) -> int:
        return self.pipe.dit.blocks[0].self_attn.num_heads  # ty: ignore  # torch types entries as bare Module

    @property
    def head_dim(self) -> int:
        return self.pipe.dit.blocks[0].self_attn.head_dim  # ty: ignore  # torch types entries as bare Module


def locate(
    card: ModelCard, weights: str | Path | None = None, *, cache_dir: Path, endpoint_url: str | None = None
) -> WeightSet:
    """Find all files of a card, download them if they are remote, check and hash them.

    `weights` is a folder or s3://bucket/prefix; None means the weights in the package. Raises WeightsError for files
    that are missing or damaged, StorageError when S3 does not give them.
    """
    from_package = card.embedded and weights is None
    if from_package:
        from sakuga.wan import mini

        weights = mini.mini_dir()
    if weights is None:
        raise WeightsError(
            f"{card.name} is not in the package; say where its files are with --weights FOLDER or s3://..., "
            f"or download them with `sakuga models fetch {card.name}`"
        )
    storage = open_storage(weights, cache_dir=cache_dir, endpoint_url=endpoint_url)
    parts = find_parts(card, storage)
    for part in parts:
        for path in part.paths:
            check_file(path)
    sha256, hashes = weights_identity(parts, cache_dir)
    folder = parts[0].paths[0].parent
    lora_sha256 = None
    if from_package:
        expected = _read_card_json(folder / "card.json")
        _check_against_card_json(parts, hashes, folder, expected)
        lora_sha256 = {Path(name).name: value for name, value in expected.items() if name.startswith("loras/")}
    return WeightSet(
        card=card,
        parts=parts,
        sha256=sha256,
        file_sha256=hashes,
        lora_dir=folder / "loras" if card.embedded else None,
        lora_sha256=lora_sha256,
    )


def load_model(
    weights: WeightSet,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    memory: MemoryPlan | None = None,
    stages: Sequence[str] = STAGES,
) -> LoadedModel:
    """Load located weights into a pipeline: onto the device, or to the host where the memory plan says so.

    Of parts that no asked stage needs, the shapes alone are loaded.

    Raises DeviceError when `device` is not in this machine, PrecisionError when it cannot compute in `precision`,
    MemoryLimitError when the model does not fit into it, WeightsError when the weights are not those of their card.
    """
    place = check_device(str(device))
    numbers, plan = check_precision(precision, place), memory or MemoryPlan()
    if weights.card.embedded:
        from sakuga.wan import mini

        mini.register()
    return LoadedModel(
        card=weights.card,
        pipe=_load_pipeline(weights.card, weights.parts, place, numbers, plan, stages),
        precision=precision,
        weights_sha256=weights.sha256,
        file_sha256=weights.file_sha256,
        memory=plan,
        dit_files=_dit_files(weights.parts),
        stages=tuple(stages),
    )


def _dit_files(parts: Sequence[WeightPart]) -> tuple[tuple[Path, ...], ...]:
    files = tuple(part.paths for name in ("dit", "dit2") for part in parts if part.file.part == name)
    return files if all(path.suffix == ".safetensors" for paths in files for path in paths) else ()


def _load_pipeline(
    card: ModelCard,
    parts: Sequence[WeightPart],
    device: torch.device,
    precision: Precision,
    memory: MemoryPlan,
    stages: Sequence[str],
) -> "WanVideoPipeline":
    from diffsynth.core import ModelConfig
    from diffsynth.pipelines.wan_video import WanVideoPipeline
    from safetensors import SafetensorError

    models = [part for part in parts if part.file.part != "tokenizer"]
    _check_recognised(card, models)
    tokenizer = next(part for part in parts if part.file.part == "tokenizer")
    needed = {name for stage in stages for name in PARTS_OF_STAGES[stage]}
    room = memory_of(device, card.name, "end what else uses it, load in bf16 or take a smaller model")
    try:
        with room, stdout_to_log(), mapped_loads([path for part in models for path in part.paths]):
            configs = [
                _config(card, part, device, precision, memory) if part.file.part in needed else _shapes_only(part)
                for part in models
            ]
            pipe = WanVideoPipeline.from_pretrained(
                torch_dtype=precision.dtype,
                device=device,
                model_configs=configs,
                tokenizer_config=ModelConfig(path=str(tokenizer.paths[0].parent), skip_download=True),
                redirect_common_files=False,
            )
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as error:
        files = ", ".join(str(path) for part in parts for path in part.paths)
        raise WeightsError(
            f"{card.name} cannot be loaded from {files}: {error}; check or download them again"
        ) from error
    _check_is_card(card, pipe)
    pipe.requires_grad_(False)
    return pipe.eval()


def _config(
    card: ModelCard, part: WeightPart, device: torch.device, precision: Precision, memory: MemoryPlan
) -> "ModelConfig":
    """How DiffSynth loads one part: where to, in which numbers, and what of it is quantized."""
    from diffsynth.core import ModelConfig

    of_blocks = part.file.part in ("dit", "dit2")
    home = device if memory.kind == "resident" else torch.device("cpu")
    config = ModelConfig(
        path=_paths(part),
        skip_download=True,
        computation_device=home,
        computation_dtype=precision.dtype,
        quantize=quantization(precision, card.kept_layers) if of_blocks else None,
    )
    # Weights that go to a GPU or are quantized are read tensor by tensor, and none of the file's is kept.
    if config.quantize is None and home.type == "cpu":
        config.state_dict = mapped_tensors(part.paths)
    return config


def _shapes_only(part: WeightPart) -> "ModelConfig":
    """A part on PyTorch's meta device: it answers what it is, takes no memory and cannot compute."""
    from diffsynth.core import ModelConfig

    meta = torch.device("meta")
    tensors = {name: tensor.to(meta) for name, tensor in mapped_tensors(part.paths).items()}
    return ModelConfig(path=_paths(part), skip_download=True, computation_device=meta, state_dict=tensors)


def _check_recognised(card: ModelCard, models: Sequence[WeightPart]) -> None:
    """Name the file that DiffSynth would not know; .pth files are left to the loader, a look inside means a load."""
    from diffsynth.configs import MODEL_CONFIGS
    from diffsynth.core.loader import hash_model_file

    known = {config["model_hash"] for config in MODEL_CONFIGS}
    for part in models:
        if all(path.suffix == ".safetensors" for path in part.paths) and hash_model_file(_paths(part)) not in known:
            names = ", ".join(str(path) for path in part.paths)
            raise WeightsError(
                f"{names} holds no model that DiffSynth knows, so it is not the {part.file.part} of {card.name}; "
                "check that the right files lie there"
            )


def _check_is_card(card: ModelCard, pipe: "WanVideoPipeline") -> None:
    """The files loaded, but are they those of this card?"""
    missing = [name for name in ("dit", "vae", "text_encoder") if getattr(pipe, name) is None]
    if card.needs_clip and pipe.image_encoder is None:
        missing.append("image_encoder")
    if "vace" in card.tasks and pipe.vace is None:
        missing.append("vace")
    if card.controls_speed and pipe.motion_controller is None:
        missing.append("motion_controller")
    if "camera" in card.tasks and pipe.dit is not None and pipe.dit.control_adapter is None:
        missing.append("control_adapter of the camera")
    if missing:
        raise WeightsError(f"the files of {card.name} hold no {', '.join(missing)}; check that they are the right ones")
    if pipe.dit.in_dim != card.in_dim or pipe.vae.z_dim != card.z_dim or (pipe.dit2 is not None) != card.two_experts:
        raise WeightsError(
            f"the files hold another model than {card.name}: a DiT of {pipe.dit.in_dim} input channels where the card "
            f"has {card.in_dim}, another VAE or number of experts; check that they are the right ones"
        )


def _read_card_json(card_json: Path) -> dict[str, str]:
    """sha256 by file of the embedded model, as its card lists them; WeightsError when that cannot be read."""
    if not card_json.is_file():
        raise WeightsError(f"{card_json} is missing, so these weights cannot be checked; install the package again")
    try:
        return dict(json.loads(card_json.read_text())["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{card_json} is damaged ({error}); install the package again") from error


def _check_against_card_json(
    parts: Sequence[WeightPart], hashes: Mapping[str, str], folder: Path, expected: Mapping[str, str]
) -> None:
    """Damaged values do not show in a file's header; its hash shows them."""
    for part in parts:
        for path in part.paths:
            name = path.relative_to(folder).as_posix()
            if hashes[f"{part.file.part}/{path.name}"] != expected.get(name):
                raise WeightsError(f"{path} is damaged: its sha256 is not that of card.json; install the package again")


def _paths(part: WeightPart) -> str | list[str]:
    """As DiffSynth wants them: one path, or a list for shards."""
    return str(part.paths[0]) if len(part.paths) == 1 else [str(path) for path in part.paths]


class _LogLines(io.TextIOBase):
    """A text stream whose lines become log records."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                logger.debug("diffsynth: %s", line.rstrip())
        return len(text)


@contextlib.contextmanager
def stdout_to_log() -> Generator[None]:
    """DiffSynth prints while it loads and encodes; on stdout that would break `--json`.

    Its bar over the VAE's tiles would write over ours, and is left out.
    """
    from diffsynth.models import wan_video_vae

    bar = wan_video_vae.tqdm
    vars(wan_video_vae)["tqdm"] = lambda tiles, **_: tiles
    try:
        with contextlib.redirect_stdout(_LogLines()):
            yield
    finally:
        vars(wan_video_vae)["tqdm"] = bar
