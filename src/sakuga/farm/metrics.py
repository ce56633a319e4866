"""What lanes measure, as metrics of Ray: on every node's Prometheus page and in the dashboard. No ids as labels.

Run: pytest tests/ray/test_serving.py
"""

from ray.util.metrics import Counter, Histogram

SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
BYTES = [1e5, 1e6, 1e7, 3e7, 1e8, 3e8, 1e9]
MEASURED = {
    "step_s": "Seconds of a denoise step, told and answered",
    "snapshot_s": "Seconds to save a render between two steps",
    "snapshot_bytes": "Bytes of a saved render",
    "fetch_s": "Seconds to bring a render's inputs from storage",
    "publish_s": "Seconds to store and publish a finished video",
    "load_s": "Seconds to begin a set of ranks and load the model",
}


class LaneMetrics:
    """Of one lane; call it with a name of `MEASURED` and a value."""

    def __init__(self, model: str) -> None:
        tags = ("model",)
        self._measured = {
            name: Histogram(
                f"sakuga_lane_{name}", text, boundaries=BYTES if name.endswith("bytes") else SECONDS, tag_keys=tags
            )
            for name, text in MEASURED.items()
        }
        self._turns = Counter("sakuga_lane_turns", "Renders that lanes ended with", tag_keys=("model", "outcome"))
        self._model = model

    def __call__(self, name: str, value: float) -> None:
        self._measured[name].observe(value, tags={"model": self._model})

    def ended(self, outcome: str) -> None:
        self._turns.inc(tags={"model": self._model, "outcome": outcome})
