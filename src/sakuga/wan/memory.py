"""Memory plans: where a model's weights lie while they are not in use.

| plan | on the device | for |
|---|---|---|
| `resident` | everything, always | GPUs that hold the whole model |
| `components` | the part at work: text encoder, DiT or VAE; the others on the host | the DiT fits, not all parts |
| `layers:BYTES` | blocks of the DiT up to so many bytes; the others pass through one at a time | the DiT does not fit |
| `disk` | one block at a time, read from the memory-mapped files | neither host nor device holds the DiT |

Weights in 8 bits are made when a model is loaded and stay in host memory; files cannot give them block by block.
A plan changes no bit of a render.     Run: pytest tests/unit/test_memory.py
"""

import re
from dataclasses import dataclass

from sakuga.errors import PlanError, did_you_mean, shown

KINDS = ("resident", "components", "layers", "disk")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """One of `KINDS`, with the bytes of blocks that stay on the device for `layers`."""

    kind: str = "resident"
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            hint = did_you_mean(self.kind, KINDS) or f"; choose one of {', '.join(KINDS)}"
            raise PlanError(f"memory plan {shown(self.kind)} is unknown{hint}")
        if (self.budget_bytes is not None) != (self.kind == "layers"):
            raise PlanError(f"memory plan {self.kind}: a number of bytes belongs to layers, as in layers:12GB")

    @classmethod
    def parse(cls, text: str) -> "MemoryPlan":
        """The plan of its short spelling. Raises PlanError.

        >>> MemoryPlan.parse("layers:1.5GB").budget_bytes, str(MemoryPlan.parse("disk"))
        (1500000000, 'disk')
        """
        kind, colon, amount = text.strip().partition(":")
        return cls(kind=kind, budget_bytes=parse_bytes(amount) if colon else None)

    @property
    def smaller(self) -> "MemoryPlan | None":
        """What to try when a render did not fit; None: there is nothing smaller."""
        kind = {"resident": "components", "components": "disk", "layers": "disk"}.get(self.kind)
        return None if kind is None else MemoryPlan(kind=kind)

    def __str__(self) -> str:
        return self.kind if self.budget_bytes is None else f"{self.kind}:{self.budget_bytes}"


def parse_bytes(text: str) -> int:
    """A number of bytes with an optional unit. Raises PlanError.

    >>> parse_bytes("12GB"), parse_bytes("1 GiB"), parse_bytes("4096")
    (12000000000, 1073741824, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise PlanError(f"{shown(text)} is no number of bytes; write 12GB, 900MiB or a plain number")
    return round(float(match[1]) * UNITS[match[2].upper()])
