"""`/v1/webhooks`: the secret that messages are signed with, what became of them, and once more those that failed.

`webhooks.py` sends them.     Run: pytest tests/unit/test_api_hooks.py
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from sakuga.api.auth import Reader, Writer
from sakuga.api.deps import Deps
from sakuga.api.documents import ERRORS, Id, PageQuery, page_of
from sakuga.api.wire import Page
from sakuga.jobstore import Delivery

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], responses=ERRORS)


class Secret(BaseModel):
    """For `client.webhooks.unwrap`, or any library of Standard Webhooks."""

    object: Literal["webhook.secret"] = "webhook.secret"
    secret: str


class DeliveryObject(BaseModel):
    """A message that was, or will be, sent."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    type: str
    video_id: str
    url: str
    state: str
    attempt: int
    status: int | None
    """Of the receiver's last answer."""
    created_at: int


class DeliveryPage(Page):
    """Messages."""

    data: list[DeliveryObject]


class DeliveryQuery(PageQuery):
    """Which ones."""

    only_failed: bool = False


@router.get("/secret")
def secret(deps: Deps, key: Writer) -> Secret:
    """Made when it is first asked for."""
    return Secret(secret=deps.stores.webhooks.secret(key.tenant))


@router.get("/deliveries")
def deliveries(deps: Deps, key: Reader, query: Annotated[DeliveryQuery, Query()]) -> DeliveryPage:
    """What was told to webhooks, the newest first."""
    found, has_more = deps.stores.webhooks.page(
        key.tenant, only_failed=query.only_failed, after=query.after, limit=query.limit
    )
    return page_of(DeliveryPage, [_shown(delivery) for delivery in found], has_more)


@router.post("/deliveries/{delivery_id}/replay")
def replay(deps: Deps, key: Writer, delivery_id: Id) -> DeliveryObject:
    """Send it once more, under the same id."""
    return _shown(deps.stores.webhooks.replay(key.tenant, delivery_id))


def _shown(delivery: Delivery) -> DeliveryObject:
    return DeliveryObject(
        id=delivery.id, type=delivery.type, video_id=delivery.job_id, url=delivery.url, state=delivery.state,
        attempt=delivery.attempt, status=delivery.status, created_at=int(delivery.created_at),
    )  # fmt: skip
