"""The HTTP API of the farm: `/v1/videos` as OpenAI's client speaks it, and what a farm has beyond it.

It knows the job store, storage and the cost model, not Ray. `create_app` makes a FastAPI application of `ApiDeps`.
"""

from sakuga.api.app import create_app
from sakuga.api.deps import ApiDeps, ApiSettings, Metrics, ServedModel

__all__ = ["ApiDeps", "ApiSettings", "Metrics", "ServedModel", "create_app"]
