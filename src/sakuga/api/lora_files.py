"""LoRAs that requests name, as files on this machine: by id of the registry, or by a name that a model brings along.

Run: pytest tests/unit/test_api_loras.py
"""

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sakuga.api.deps import ApiDeps
from sakuga.errors import LoraError, RecipeError, SakugaError, shown
from sakuga.jobstore import LoraEntry
from sakuga.recipe import LoraRequest
from sakuga.wan.cards import ModelCard

ID_START = "lora_"
KEPT_S = 3600.0
"""How long a file that no request names stays on this machine."""


def with_files(
    deps: ApiDeps, tenant: str, card: ModelCard, loras: Sequence[LoraRequest]
) -> tuple[tuple[LoraRequest, ...], Sequence[LoraEntry]]:
    """LoRAs of a request for `resolve`: those of the registry as files here, and their entries.

    Raises RecipeError for a path and for an unknown name, NotFoundError for an unknown id, LoraError for another model.
    """
    found, entries = [], []
    for lora in loras:
        if lora.name is None:
            raise RecipeError("loras has a path; upload the file to /v1/loras and give the id of the answer")
        if lora.name.startswith(ID_START):
            entry = deps.stores.loras.get(tenant, lora.name)
            _check_model(deps, entry, card)
            entries.append(entry)
            lora = LoraRequest(path=str(_brought(deps, entry)), weight=lora.weight, expert=lora.expert)
        elif lora.name not in card.loras:
            has = f"{card.name} has {', '.join(card.loras)}" if card.loras else f"{card.name} has none of its own"
            raise RecipeError(f"loras has {shown(lora.name)}, which is no id of a LoRA; {has}")
        found.append(lora)
    return tuple(found), entries


@contextmanager
def named(names: Mapping[str, str]) -> Generator[None]:
    """Inside, errors that speak of these paths speak of these names: where a file lies is nobody's business."""
    try:
        yield
    except SakugaError as error:
        message = error.message
        for path, name in names.items():
            for form_of_path in (shown(path), repr(path), path):
                message = message.replace(form_of_path, name)
        raise type(error)(message) from error


def _check_model(deps: ApiDeps, entry: LoraEntry, card: ModelCard) -> None:
    """A LoRA fits the models of its own model's shapes."""
    made_for = entry.passport["model"]
    served = deps.models.get(str(made_for))
    fits = served is not None and (served.card.dit, served.card.in_dim) == (card.dit, card.in_dim)
    if made_for != card.name and not fits:
        raise LoraError(f"LoRA {entry.id} was checked for {made_for}; upload it for {card.name}")


def _brought(deps: ApiDeps, entry: LoraEntry) -> Path:
    """Its file on this machine; those that nobody wanted for a while go."""
    folder = deps.scratch / "loras"
    folder.mkdir(exist_ok=True)
    path = folder / f"{entry.sha256}.safetensors"
    if path.is_file():
        os.utime(path)
    else:
        deps.objects.get(entry.object_name, path)
    for other in folder.glob("*.safetensors"):
        if time.time() - other.stat().st_mtime > KEPT_S:
            other.unlink(missing_ok=True)
    return path
