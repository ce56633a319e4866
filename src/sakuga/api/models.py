"""`/v1/models`: what this farm renders, as whoever runs it has configured.

Run: pytest tests/unit/test_api_models.py
"""

from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi import Path as PathParameter
from pydantic import BaseModel, JsonValue

from sakuga.api.auth import READER
from sakuga.api.deps import Deps, ServedModel
from sakuga.api.documents import ERRORS
from sakuga.errors import NotFoundError, shown

router = APIRouter(prefix="/v1", tags=["models"], responses=ERRORS)
MODEL_ID = r"^[A-Za-z0-9._-]{1,100}$"
DEFAULTS = (
    "width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2",
    "boundary_ratio", "flow_shift", "precision",
)  # fmt: skip
"""Fields of a request that the card fills in."""


class ModelObject(BaseModel):
    """A model of OpenAI's list, and what its card says."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "sakuga"
    title: str
    licence: str
    tasks: list[str]
    loras: list[str]
    defaults: dict[str, JsonValue]


class ModelPage(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


@router.get("/models", dependencies=[READER])
async def models(deps: Deps) -> ModelPage:
    """The first one is taken when a request names none."""
    return ModelPage(data=[_model(served) for served in deps.models.values()])


@router.get("/models/{model_id}", dependencies=[READER])
async def model(deps: Deps, model_id: Annotated[str, PathParameter(pattern=MODEL_ID)]) -> ModelObject:
    """One model."""
    if model_id not in deps.models:
        raise NotFoundError(f"there is no model {shown(model_id)} here; GET /v1/models lists them")
    return _model(deps.models[model_id])


def _model(served: ServedModel) -> ModelObject:
    card = served.card
    return ModelObject(
        id=card.name, title=card.title, licence=card.licence, tasks=list(card.tasks), loras=list(card.loras),
        defaults={name: getattr(card, name) for name in DEFAULTS},
    )  # fmt: skip
