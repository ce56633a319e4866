"""Encoding and decoding on replicas of their own, so that the lanes' devices hold nothing but the DiT.

Between two stages a render is its snapshot. Encoders and decoders take one render at a time from all lanes of a pool.
Run: pytest tests/ray/test_stages.py
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ray
from ray.serve.handle import DeploymentHandle

from sakuga.engine.session import InputFiles, Progress, RenderSession
from sakuga.farm.pools import PoolArgs, StageArgs
from sakuga.farm.ranks import RankSet
from sakuga.parallel.plan import ParallelPlan
from sakuga.recipe import RenderRecipe


class StageReplica:
    """One encoder or decoder: a set of one rank that has loaded only what its stage needs."""

    def __init__(self, pool: PoolArgs, stage: str, args: StageArgs) -> None:
        spec = replace(pool.rank_spec(), stages=(stage,), parallel=ParallelPlan())
        placement = ray.util.get_current_placement_group()
        self._ranks = RankSet(
            spec, placement, cpus_per_rank=pool.cpus_per_rank, gpus_per_rank=args.gpus if pool.device != "cpu" else 0.0
        )
        self._ranks.start()

    def encode(self, recipe: RenderRecipe, files: InputFiles, contents: Mapping[Path, bytes]) -> bytes:
        """The snapshot of a render before its first step."""
        with tempfile.TemporaryDirectory(prefix="sakuga-encode-") as folder:
            here = {path: Path(folder, str(number)) / path.name for number, path in enumerate(contents)}
            for path, content in contents.items():
                here[path].parent.mkdir()
                here[path].write_bytes(content)
            moved = InputFiles(
                images={role: here[path] for role, path in files.images.items()},
                videos={role: here[path] for role, path in files.videos.items()},
                loras={sha256: here[path] for sha256, path in files.loras.items()},
            )
            state = Path(folder, "state")
            self._sound().snapshot(self._ranks.begin(recipe, moved), state)
            return state.read_bytes()

    def decode(self, recipe: RenderRecipe, files: InputFiles, state: bytes) -> tuple[Mapping, Mapping[str, bytes]]:
        """Receipt and files of a render after its last step."""
        with tempfile.TemporaryDirectory(prefix="sakuga-decode-") as folder:
            path, out = Path(folder, "state"), Path(folder, "out")
            path.write_bytes(state)
            out.mkdir()
            receipt = self._ranks.finish(self._sound().begin(recipe, files, path), out)
            return receipt, {made.name: made.read_bytes() for made in out.iterdir()}

    def check_health(self) -> None:
        """Raises RankLostError."""
        if not self._ranks.is_broken:
            self._ranks.ping()

    def _sound(self) -> RankSet:
        if self._ranks.is_broken:
            self._ranks.start()
        return self._ranks

    def __del__(self) -> None:
        if hasattr(self, "_ranks"):
            self._ranks.stop()


class SplitSession:
    """`RenderSession` whose first or last stage is done by other replicas."""

    def __init__(
        self, denoiser: RenderSession, *, encoder: DeploymentHandle | None, decoder: DeploymentHandle | None
    ) -> None:
        self._denoiser, self._encoder, self._decoder = denoiser, encoder, decoder
        self._recipe: RenderRecipe | None = None
        self._files = InputFiles()

    def begin(self, recipe: RenderRecipe, files: InputFiles, snapshot: Path | None = None) -> Progress:
        self._recipe, self._files = recipe, files
        if snapshot is not None or self._encoder is None:
            return self._denoiser.begin(recipe, files, snapshot)
        contents = {path: path.read_bytes() for path in files.paths}
        state = self._encoder.encode.remote(recipe, files, contents).result()
        with tempfile.NamedTemporaryFile(prefix="sakuga-encoded-") as file:
            file.write(state)
            file.flush()
            return self._denoiser.begin(recipe, files, Path(file.name))

    def step(self, at: Progress, /) -> Progress:
        return self._denoiser.step(at)

    def snapshot(self, at: Progress, path: Path) -> None:
        self._denoiser.snapshot(at, path)

    def preview(self, at: Progress, path: Path) -> bool:
        return self._denoiser.preview(at, path)

    def finish(self, at: Progress, folder: Path) -> Mapping[str, object]:
        if self._decoder is None:
            return self._denoiser.finish(at, folder)
        with tempfile.NamedTemporaryFile(prefix="sakuga-denoised-") as file:
            self._denoiser.snapshot(at, Path(file.name))
            state = Path(file.name).read_bytes()
        receipt, made = self._decoder.decode.remote(self._recipe, self._files, state).result()
        for name, content in made.items():
            (folder / name).write_bytes(content)
        return receipt

    def shrink(self) -> bool:
        return self._denoiser.shrink()
