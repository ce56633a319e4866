"""Learned metrics as plug-ins: each takes weights that lie on this machine, and nothing is ever downloaded.

    metrics = load_metrics(["lpips=weights/lpips-alex.safetensors", "clip=weights/clip-vit-b-32"])

- `lpips=FILE`: safetensors or pth with torchvision's AlexNet (`features.0.weight`, ...) and `lin0.model.1.weight` to
  `lin4.model.1.weight` of the lpips package; its whole state dict (`net.slice1.0.weight`, ...) is taken, too.
  Lower is nearer. Figures of other networks (VGG) are other figures.
- `clip=FOLDER`: a CLIPModel and its processor as transformers saves them. Mean cosine of frames and prompt. Blind to
  motion, and people may prefer the video with the lower score.
- `fvd=FILE`: a TorchScript I3D, called as `i3d(video_BCTHW, rescale=True, resize=True, return_features=True)` with 0 to
  255, as the file of StyleGAN-V is. One number for a set of at least 256 videos; fewer say little.

VBench is no plug-in: it brings a package and a dozen models that it downloads itself. Run it on the folder.

Shapes: B batch, T frames, H, W, C = 3 (RGB); N videos, D features.     Run: pytest tests/unit/test_quality_learned.py
"""

import logging
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sakuga.errors import InputError, MetricError, WeightsError, did_you_mean, shown
from sakuga.quality.frames import Frames

logger = logging.getLogger(__name__)

FVD_MIN_VIDEOS = 256
BATCH_FRAMES = 16
UNPICKLING = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What a file that is no pickle of weights makes of a reader that takes every byte for an instruction."""
LPIPS_MIN_SIDE = 32
LPIPS_TAPS = (1, 4, 7, 9, 11)  # the five ReLUs of AlexNet's features
LPIPS_WIDTHS = (64, 192, 384, 256, 256)
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LearnedMetric(Protocol):
    """A metric with weights. A case has a figure of its own, or adds to one of the whole set."""

    name: str

    def of_case(self, gen_THWC: Frames, wanted_THWC: Frames | None, prompt: str | None) -> float | None:
        """Figure of one video; None where the metric has none for it. `wanted_THWC` is the target or the reference."""
        ...

    def of_set(self) -> tuple[float | None, str | None]:
        """Figure of all cases so far, and a remark on it."""
        ...


class _ByCase:
    """What metrics with a figure for each case have in common: none for the set, and a remark if they met no case."""

    needs: str

    def __init__(self) -> None:
        self._num_cases = 0

    def of_set(self) -> tuple[float | None, str | None]:
        return None, None if self._num_cases else f"no case had {self.needs}"


class Lpips(_ByCase):
    """Zhang et al. 2018 with AlexNet: 0 for equal frames; mean over the frames."""

    name, needs = "lpips", "a target or a reference"

    def __init__(self, path: Path) -> None:
        super().__init__()
        from torchvision.models import alexnet

        weights = {re.sub(r"^net\.slice\d\.", "features.", key): value for key, value in _read_weights(path).items()}
        with torch.device("meta"):  # no memory, no random weights
            self._features = alexnet(weights=None).features[: LPIPS_TAPS[-1] + 1].eval()
        lin = {f"lin{n}.model.1.weight": torch.empty(1, width, 1, 1) for n, width in enumerate(LPIPS_WIDTHS)}
        wanted = {f"features.{key}": value for key, value in self._features.state_dict().items()} | lin
        wrong = [key for key, value in wanted.items() if key not in weights or weights[key].shape != value.shape]
        if wrong:
            raise WeightsError(
                f"{shown(path)} is no LPIPS of AlexNet: {len(wrong)} of {len(wanted)} tensors are missing or of "
                f"another shape, first {shown(wrong[0])}; it needs torchvision's alexnet and the lin layers of lpips"
            )
        own = {key: weights[f"features.{key}"].float() for key in self._features.state_dict()}
        self._features.load_state_dict(own, assign=True)
        self._lin = [weights[key].float() for key in lin]

    @torch.inference_mode()
    def of_case(self, gen_THWC: Frames, wanted_THWC: Frames | None, prompt: str | None) -> float | None:
        if wanted_THWC is None:
            return None
        height, width = gen_THWC.shape[1:3]
        if min(height, width) < LPIPS_MIN_SIDE:
            raise MetricError(f"LPIPS needs frames of at least {LPIPS_MIN_SIDE} pixels a side, not {width}x{height}")
        distances = [
            self._distances(gen_THWC[t : t + BATCH_FRAMES], wanted_THWC[t : t + BATCH_FRAMES])
            for t in range(0, len(gen_THWC), BATCH_FRAMES)
        ]
        self._num_cases += 1
        return float(torch.cat(distances).mean())

    def _distances(self, one_THWC: Frames, other_THWC: Frames) -> Tensor:
        total_T = torch.zeros(len(one_THWC))
        for one, other, lin in zip(self._taps(one_THWC), self._taps(other_THWC), self._lin, strict=True):
            total_T += (torch.square(one - other) * lin).sum(1).mean((1, 2))
        return total_T

    def _taps(self, video_THWC: Frames) -> list[Tensor]:
        """What the network sees in the frames, each point's channels of length 1."""
        signed_TCHW = torch.from_numpy(np.ascontiguousarray(video_THWC)).permute(0, 3, 1, 2).float() / 127.5 - 1
        shift, scale = torch.tensor(LPIPS_SHIFT)[:, None, None], torch.tensor(LPIPS_SCALE)[:, None, None]
        features, seen = (signed_TCHW - shift) / scale, []
        for index, layer in enumerate(self._features):
            features = layer(features)
            if index in LPIPS_TAPS:
                # A copy: the ReLUs work in place. 1e-10 as in the lpips package.
                seen.append(features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return seen


class Clip(_ByCase):
    """Mean cosine of the frames' and the prompt's embeddings, -1 to 1."""

    name, needs = "clip", "a prompt"

    def __init__(self, path: Path) -> None:
        super().__init__()
        from transformers import CLIPModel, CLIPProcessor

        if not path.is_dir():
            raise WeightsError(f"{shown(path)} is no folder: give one with a CLIPModel as transformers saves it")
        try:
            loaded = CLIPModel.from_pretrained(path, local_files_only=True, output_loading_info=True)
            model, about = loaded  # ty: ignore[not-iterable] the second value is there when it is asked for
            self._processor = CLIPProcessor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise WeightsError(
                f"{shown(path)} holds no CLIP that transformers can load: {_first_line(error)}"
            ) from error
        if missing := sorted(about["missing_keys"]):  # transformers would leave them random
            raise WeightsError(
                f"{shown(path)} is no whole CLIP: {len(missing)} tensors are missing, first {missing[0]}"
            )
        self._model = model.eval()

    @torch.inference_mode()
    def of_case(self, gen_THWC: Frames, wanted_THWC: Frames | None, prompt: str | None) -> float | None:
        if not prompt:
            return None
        cosines = []
        for t in range(0, len(gen_THWC), BATCH_FRAMES):
            frames = list(gen_THWC[t : t + BATCH_FRAMES])
            inputs = self._processor(text=[prompt], images=frames, return_tensors="pt", truncation=True)
            found = self._model(**inputs)  # both embeddings come with length 1
            cosines.append(found.image_embeds @ found.text_embeds[0])
        self._num_cases += 1
        return float(torch.cat(cosines).mean())


class Fvd:
    """Fréchet video distance: one number for all videos against all wanted ones."""

    name = "fvd"

    def __init__(self, path: Path) -> None:
        _check_file(path)
        try:
            self._i3d = torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise WeightsError(f"{shown(path)} is no TorchScript file: {_first_line(error)}") from error
        self._gens: list[NDArray[np.float64]] = []
        self._wanted: list[NDArray[np.float64]] = []

    def of_case(self, gen_THWC: Frames, wanted_THWC: Frames | None, prompt: str | None) -> float | None:
        if wanted_THWC is not None:
            gen_D, wanted_D = self._features_of(gen_THWC), self._features_of(wanted_THWC)
            self._gens.append(gen_D)
            self._wanted.append(wanted_D)
        return None

    def of_set(self) -> tuple[float | None, str | None]:
        count = len(self._gens)
        if count < 2:
            return None, f"{count} videos with a target or a reference, and a distance needs two"
        few = f"{count} videos; below {FVD_MIN_VIDEOS} it says more about their number than about them"
        distance = frechet_distance(np.stack(self._gens), np.stack(self._wanted))
        return distance, few if count < FVD_MIN_VIDEOS else None

    @torch.inference_mode()
    def _features_of(self, video_THWC: Frames) -> NDArray[np.float64]:
        video_BCTHW = torch.from_numpy(np.ascontiguousarray(video_THWC)).permute(3, 0, 1, 2)[None].float()
        try:
            features_BD = self._i3d(video_BCTHW, rescale=True, resize=True, return_features=True)
        except (RuntimeError, TypeError) as error:
            raise MetricError(f"the I3D of fvd did not take a video: {_first_line(error)}") from error
        return features_BD.double().flatten().numpy()


def frechet_distance(one_ND: NDArray[np.float64], other_ND: NDArray[np.float64]) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussians that fit two sets of features."""
    one_DD, other_DD = np.atleast_2d(np.cov(one_ND, rowvar=False)), np.atleast_2d(np.cov(other_ND, rowvar=False))
    # The trace of the root of the product, by a symmetric one: `sqrtm` of a product of rank below D gives imaginaries.
    values, vectors = scipy.linalg.eigh(one_DD)
    root_DD = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    shared = np.sqrt(np.maximum(scipy.linalg.eigvalsh(root_DD @ other_DD @ root_DD), 0.0)).sum()
    shift = np.square(one_ND.mean(0) - other_ND.mean(0)).sum()
    return max(0.0, float(shift + np.trace(one_DD) + np.trace(other_DD) - 2.0 * shared))


METRICS: Mapping[str, Callable[[Path], LearnedMetric]] = {"lpips": Lpips, "clip": Clip, "fvd": Fvd}


def load_metrics(specs: Iterable[str]) -> list[LearnedMetric]:
    """One metric for each `NAME=PATH`. Raises InputError for a name twice, whose figures would be one."""
    metrics = [load_metric(spec) for spec in specs]
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise InputError(f"--metric names {', '.join(names)}: give each metric once")
    return metrics


def load_metric(spec: str) -> LearnedMetric:
    """The metric of `NAME=PATH`. Raises InputError for an unknown name, WeightsError for wrong weights."""
    name, _, path = spec.partition("=")
    if name not in METRICS or not path:
        raise InputError(
            f"--metric {shown(spec)} is not NAME=PATH with one of {', '.join(METRICS)}{did_you_mean(name, METRICS)}"
        )
    metric = METRICS[name](Path(path).expanduser())
    logger.info("learned metric %s loaded", name)
    return metric


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{shown(path)} does not exist: a learned metric takes weights that you have here")


def _read_weights(path: Path) -> dict[str, Tensor]:
    _check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *UNPICKLING) as error:
        raise WeightsError(f"{shown(path)} cannot be read as weights: {_first_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{shown(path)} holds no state dict, which is names with tensors")
    return found


def _first_line(error: Exception) -> str:
    return shown(str(error).strip().split("\n", 1)[0])
