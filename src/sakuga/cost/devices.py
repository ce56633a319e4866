"""What a device can do: memory, peak speeds, links, and the share of the peaks that a Wan render reaches.

Peaks are those of the makers' data sheets, dense. Shares are fitted to measured renders; where there are none they are
those of the H100, and `assumed` says so.     Run: pytest tests/unit/test_cost.py
"""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sakuga.cost.work import Work
from sakuga.errors import DeviceError, did_you_mean, shown

RESERVED_SHARE = 0.05
"""Of a device's memory: CUDA's context (about 0.5 GB) and what the allocator cannot put together. Assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device, as a rank of a render has it."""

    name: str
    memory_bytes: int
    matmul_flops: float
    """A second, of 16-bit matrix products with sums in fp32."""
    fp32_flops: float
    """A second, of fp32 matrix products as PyTorch makes them: without TF32."""
    linear_efficiency: float
    """Share of `matmul_flops` in linear layers, which carry the time of norms, rotations and activations."""
    attention_efficiency: float
    conv_efficiency: float
    host_bytes_per_s: float
    """From the host's memory, page-locked, one way."""
    link_bytes_per_s: float
    """To another device of the same machine, one way, as large exchanges reach it."""
    disk_bytes_per_s: float = 2e9
    """Memory-mapped files, nothing cached. Assumed: an NVMe drive under random reads of a block's tensors."""
    exchange_s: float = 30e-6
    """To begin an exchange between ranks. Assumed."""
    block_s: float = 0.0
    """Of a block whatever its size, where that is seen: operators that are called for little work."""
    pads_text: bool = True
    """Cross-attention sees the padding behind a prompt; on a CPU one token stands for all of it."""
    measured: str = ""
    """What the efficiencies are fitted to; empty where they are not measured on this device."""

    @property
    def usable_bytes(self) -> int:
        return usable_bytes(self.memory_bytes)

    def seconds(self, work: Work, precision: str) -> float:
        peak = self.fp32_flops if precision == "fp32" else self.matmul_flops
        return (
            work.linear_flops / (peak * self.linear_efficiency)
            + work.attention_flops / (peak * self.attention_efficiency)
            + work.conv_flops / (peak * self.conv_efficiency)
        )

    @classmethod
    def here(cls, device: str = "cpu") -> "DeviceSpec":
        """This machine, by one quick matrix product; a GPU of the list keeps what is known of its kind."""
        import torch

        if device == "cpu":
            peak = _measured_flops(device, torch.float32)
            memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            name = f"this machine ({torch.get_num_threads()} threads)"
            return replace(CPU, name=name, memory_bytes=memory_bytes, matmul_flops=peak, fp32_flops=peak)
        properties = torch.cuda.get_device_properties(device)
        known = known_gpu(properties.name)
        if known is not None:
            return replace(known, memory_bytes=properties.total_memory)
        return replace(
            DEVICES["h100"],
            name=properties.name,
            memory_bytes=properties.total_memory,
            # A plain product does not reach the data sheet's peak either, so this is a little too slow.
            matmul_flops=_measured_flops(device, torch.bfloat16),
            fp32_flops=_measured_flops(device, torch.float32),
            host_bytes_per_s=PCIE_4,
            link_bytes_per_s=PCIE_4 * LINK_SHARE,
            measured="",
        )


def usable_bytes(memory_bytes: int) -> int:
    """What a render can have of a device's memory."""
    return round(memory_bytes * (1 - RESERVED_SHARE))


def fit_efficiencies(
    samples: Sequence[tuple[Work, float]], peak_flops: float, *, attention_efficiency: float | None = None
) -> tuple[float, float]:
    """Linear and attention efficiency for which these pieces of work take these seconds, by least relative squares.

    Two samples of different size are enough; with the attention's efficiency given, one is. `linear_efficiency` takes
    what the samples hold beside attention.
    """
    rows = [
        ((work.flops - work.attention_flops) / peak_flops / seconds, work.attention_flops / peak_flops / seconds)
        for work, seconds in samples
    ]
    if attention_efficiency is not None:
        left = sum(a * (1 - b / attention_efficiency) for a, b in rows)
        return sum(a * a for a, _ in rows) / left, attention_efficiency
    aa, ab, bb = sum(a * a for a, _ in rows), sum(a * b for a, b in rows), sum(b * b for _, b in rows)
    ra, rb = sum(a for a, _ in rows), sum(b for _, b in rows)
    determinant = aa * bb - ab * ab
    return determinant / (ra * bb - rb * ab), determinant / (rb * aa - ra * ab)


def _measured_flops(device: str, dtype: object, size: int = 1024) -> float:
    """Best of five products of squares, after one to warm up."""
    import torch

    size = size if device == "cpu" else 8 * size
    a = torch.ones(size, size, device=device, dtype=getattr(torch, str(dtype).rpartition(".")[2]))
    best_s = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best_s = min(best_s, time.perf_counter() - began)
    return 2 * size**3 / best_s


PCIE_4, PCIE_5 = 25e9, 50e9
"""One way over 16 lanes, of 32 and 64 GB/s on paper. Assumed: what large page-locked copies usually reach."""
LINK_SHARE = 0.6
"""Of a link's peak in an all-to-all. Assumed; with it eight H100s come out 8 % faster than published."""

# Fitted to the published figures of LightX2V for Wan2.1-I2V-14B in bf16, 81 frames, on one H200 (its benchmark page):
# 216 s at 480p and 751 s at 720p for 40 steps under guidance, 14 s and 44 s for 4 steps without. Differences of the two
# give 2.66 s and 9.30 s an evaluation, and 3.4 s and 6.8 s for the VAE. Another engine than this one: a bar.
# Attention is that of FlashAttention-3 (Shah et al. 2024: up to 740 TFLOP/s on an H100); least squares give the rest.
_LINEAR, _ATTENTION, _CONV = 0.57, 0.75, 0.14
_LIGHTX2V = "published renders of another engine (LightX2V, Wan2.1-I2V-14B on H200)"

_H100 = DeviceSpec(
    name="h100",
    memory_bytes=80 * 10**9,
    matmul_flops=989e12,  # NVIDIA H100 data sheet, SXM5: 1,979 TFLOPS with sparsity, half without
    fp32_flops=67e12,
    linear_efficiency=_LINEAR,
    attention_efficiency=_ATTENTION,
    conv_efficiency=_CONV,
    host_bytes_per_s=PCIE_5,
    link_bytes_per_s=450e9 * LINK_SHARE,  # NVLink 4: 900 GB/s both ways together
    measured=_LIGHTX2V,
)

# Wan-mini in fp32 on one thread of an AMD EPYC, 104 GFLOP/s in a product of 1024 x 1024. Best of 7 steps: 27, 198, 486
# and 1397 ms at 64x64x9, 128x128x33, 256x128x33 and 256x256x33; the model is 2 % below to 6 % above them.
CPU = DeviceSpec(
    name="cpu",
    memory_bytes=0,  # `here` puts in the machine's own numbers
    matmul_flops=1.0,
    fp32_flops=1.0,
    linear_efficiency=0.64,
    attention_efficiency=0.78,
    conv_efficiency=0.2,
    host_bytes_per_s=5e9,
    link_bytes_per_s=1e9,
    exchange_s=500e-6,
    block_s=0.8e-3,
    pads_text=False,
    measured="steps of wan-mini on one thread; the peak is measured now",
)

DEVICES: dict[str, DeviceSpec] = {
    spec.name: spec
    for spec in (
        # NVIDIA data sheets and architecture papers; GB as they are sold, taken as 10**9.
        replace(
            _H100,
            name="rtx4090",
            memory_bytes=24 * 10**9,
            matmul_flops=165.2e12,  # Ada architecture paper: FP16 with FP32 accumulate, dense
            fp32_flops=82.6e12,
            host_bytes_per_s=PCIE_4,
            link_bytes_per_s=PCIE_4 * LINK_SHARE,  # no NVLink
            measured="",
        ),
        replace(
            _H100,
            name="rtx5090",
            memory_bytes=32 * 10**9,
            matmul_flops=209.5e12,  # RTX Blackwell architecture paper: FP16 with FP32 accumulate, dense
            fp32_flops=104.8e12,
            host_bytes_per_s=PCIE_5,
            link_bytes_per_s=PCIE_5 * LINK_SHARE,
            measured="",
        ),
        replace(
            _H100,
            name="l40s",
            memory_bytes=48 * 10**9,
            matmul_flops=362e12,  # L40S data sheet: 733 TFLOPS with sparsity
            fp32_flops=91.6e12,
            host_bytes_per_s=PCIE_4,
            link_bytes_per_s=PCIE_4 * LINK_SHARE,
            measured="",
        ),
        replace(
            _H100,
            name="a100",
            memory_bytes=80 * 10**9,
            matmul_flops=312e12,  # A100 data sheet, SXM, 80 GB
            fp32_flops=19.5e12,
            host_bytes_per_s=PCIE_4,
            link_bytes_per_s=300e9 * LINK_SHARE,  # NVLink 3: 600 GB/s both ways together
            measured="",
        ),
        _H100,
        replace(_H100, name="h200", memory_bytes=141 * 10**9),  # H200 data sheet: the H100's units, more memory
    )
}


def known_gpu(title: str) -> DeviceSpec | None:
    """The entry that a driver's name stands for, such as "NVIDIA H200" or "NVIDIA GeForce RTX 4090"."""
    words = re.findall(r"[a-z0-9]+", title.lower())
    if "laptop" in words:
        return None  # other chips under the same number
    found = {"".join(words[start:stop]) for start in range(len(words)) for stop in range(start + 1, len(words) + 1)}
    return next((spec for name, spec in DEVICES.items() if name in found), None)


def find_device(name: str) -> DeviceSpec:
    """The entry of that name, or this machine for `here`. Raises DeviceError with a guess."""
    if name == "here":
        return DeviceSpec.here()
    plain = name.lower().replace(" ", "").replace("-", "").replace("_", "")
    found = DEVICES.get(plain) or DEVICES.get(f"rtx{plain}")
    if found is None:
        several = re.fullmatch(r"\d+x(\w+)|(\w+)x\d+", plain)
        hint = "; name one, and say with --cfg, --ulysses and --ring on how many" if several else ""
        hint = hint or did_you_mean(plain, DEVICES).rstrip("?")
        known = f"known are {', '.join(DEVICES)}, and here for this machine"
        raise DeviceError(f"GPU {shown(name)} is unknown{hint}; {known}")
    return found
