"""The engine on every rank of a mesh: the same code, on its branch and on its share of the tokens.

All ranks hold the same state but for two things in a step cache: hidden states are those of the rank's own tokens, and
with cfg 2 a rank remembers its own branch only. `whole` brings them together, so that a snapshot fits any plan. Every
method but `preview` is a collective: all ranks call it, in the same order, and all get the same answer.

Shapes as in `engine/state.py`.     Run: pytest tests/dist/test_rank_engine.py
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from sakuga.engine.evaluation import LocalEvaluation
from sakuga.engine.local import LocalEngine
from sakuga.engine.loop import Decision, strongest
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.state import RenderInputs, RenderState, Video
from sakuga.errors import NumericsError, RankLostError, SakugaError
from sakuga.parallel import Mesh, SequenceAttention, SequenceShard, SharedVae
from sakuga.recipe import RenderRecipe
from sakuga.wan.attention import Attention
from sakuga.wan.caching import PER_TOKEN, BranchCache
from sakuga.wan.forward import Tokens
from sakuga.wan.loading import LoadedModel

Value = TypeVar("Value")


ROLL_CALL_S = 5.0
"""How long the ranks that are left wait for each other before they call the rest lost."""
ROLL_CALL_KEY = "sakuga/roll-call"
FAILED = "failed: "


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def is_of_distributed(error: RuntimeError) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors that name its files."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "connection" in str(error).lower()


@dataclass(kw_only=True)
class RankEvaluation(LocalEvaluation):
    """A step of one branch on this rank's tokens."""

    mesh: Mesh

    def _embed(self) -> Tokens:
        whole = super()._embed()
        shard = SequenceShard(mesh=self.mesh, length=whole.x_BSD.shape[1])
        return whole.shared(shard.split, shard.gather)

    @cached_property
    def _shard(self) -> SequenceShard:
        f, h, w = self._tokens.grid
        return SequenceShard(mesh=self.mesh, length=f * h * w)

    @property
    def _among_tokens(self) -> Attention:
        return SequenceAttention(self._shard, self.kernel)

    def mean_abs(self, x: torch.Tensor) -> float:
        if x.ndim != 3:  # latents and modulations are whole on every rank
            return super().mean_abs(x)
        real = self._shard.real_length
        mine = x[:, :real].float().abs().sum(dtype=torch.float64)
        sums = torch.stack([mine, torch.full_like(mine, x[:, :real].numel())])
        total, count = self.mesh.sequence.sum(sums).tolist()
        return total / count


class RankEngine(LocalEngine):
    """Renders with all ranks of a mesh; `mesh` is this rank's view of it."""

    def __init__(
        self,
        model: LoadedModel,
        mesh: Mesh,
        execution: ExecutionPlan | None = None,
        *,
        memory_bytes: int | None = None,
    ) -> None:
        execution = execution or ExecutionPlan(memory=model.memory)
        super().__init__(model, replace(execution, parallel=mesh.plan), memory_bytes=memory_bytes)
        self.mesh = mesh
        self._vae = SharedVae(model.pipe.vae, mesh, self.device, lambda: self._offloader.use("vae"))

    def start(self, recipe: RenderRecipe, inputs: RenderInputs) -> RenderState:
        """As `LocalEngine.start`; rank 0 encodes for all, so only it needs the text encoder in memory.

        With `recipe.tiling` the ranks share the VAE's tiles.

        Raises PlanError when the plan does not fit the model or the recipe.
        """
        guided = recipe.guidance_scale != 1 or recipe.guidance_scale_2 not in (None, 1)
        self.mesh.plan.check(num_heads=self.model.num_heads, guided=guided)
        self.add_loras(inputs.lora_paths)
        return self._from_rank_0(lambda: super(RankEngine, self).start(recipe, inputs))

    def step(self, state: RenderState) -> RenderState:
        """As `LocalEngine.step`. Raises RankLostError when another rank ended, failed or no longer answers.

        The process group is destroyed then, and where this rank fails alone, as for want of memory: all ranks of this
        world have to be replaced.
        """
        try:
            return super().step(state)
        except NumericsError:
            raise  # all ranks hold the same latents and say the same
        except Exception as error:
            if isinstance(error, RuntimeError) and not isinstance(error, SakugaError) and is_of_distributed(error):
                raise RankLostError(f"{self._roll_call()} in step {state.step + 1}; start new ranks") from error
            self._leave(error)
            raise

    def _leave(self, error: Exception) -> None:
        """The others wait for this rank in an exchange: say why it will not come, and let them go on."""
        if self.mesh.plan.world_size > 1:
            sentence = error.message if isinstance(error, SakugaError) else f"{type(error).__name__}: {error}"
            _store().set(f"{ROLL_CALL_KEY}/{self.mesh.rank}", f"{FAILED}{sentence}")
            self.mesh.close()

    def _roll_call(self) -> str:
        """Who does not answer, or why somebody left; it goes through the store, as connections can be what broke."""
        store, everyone = _store(), range(self.mesh.plan.world_size)
        store.set(f"{ROLL_CALL_KEY}/{self.mesh.rank}", "here")
        self.mesh.close()  # others may still wait for a message of this rank; now they stop
        deadline = time.monotonic() + ROLL_CALL_S
        missing = [rank for rank in everyone if rank != self.mesh.rank]
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not store.check([f"{ROLL_CALL_KEY}/{rank}"])]
            time.sleep(0.05)
        if missing:
            return f"rank {', '.join(map(str, missing))} {'was' if len(missing) == 1 else 'were'} lost"
        said = {rank: store.get(f"{ROLL_CALL_KEY}/{rank}").decode() for rank in everyone}
        failed = [f"rank {rank} failed: {text.removeprefix(FAILED)}" for rank, text in said.items() if FAILED in text]
        return ", ".join(failed) or "the ranks lost contact with each other"

    def finish(self, state: RenderState) -> Video:
        """As `LocalEngine.finish`; with `recipe.tiling` the ranks share the tiles, without it rank 0 decodes alone."""
        return self._from_rank_0(lambda: super(RankEngine, self).finish(state))

    def snapshot(self, state: RenderState, path: Path) -> None:
        """Save the state for any plan: rank 0 writes what all ranks bring together."""
        whole = self.whole(state)
        self._from_rank_0(lambda: super(RankEngine, self).snapshot(whole, path))

    def restore(self, path: Path, recipe: RenderRecipe | None = None) -> RenderState:
        state = super().restore(path, recipe)
        kernel_name = self._from_rank_0(lambda: state.attention)  # "auto" is a matter of timing
        caches = {
            name: replace(cache, tensors=self._map_hidden(state, cache.tensors, "split"))
            for name, cache in state.caches.items()
            if self._is_mine(name)
        }
        return replace(state, caches=caches, attention=kernel_name)

    def whole(self, state: RenderState) -> RenderState:
        """The state with the step cache of all tokens and branches."""
        if state.refreshes_next:
            return state.without_caches()
        mine = {
            name: replace(cache, tensors=self._map_hidden(state, cache.tensors, "gather"))
            for name, cache in state.caches.items()
        }
        caches: dict[str, BranchCache] = {}
        for part in self._gather_objects(mine):
            caches |= {name: cache for name, cache in part.items() if name not in caches}
        return replace(state, caches=caches)

    def agree(self, decision: Decision) -> Decision:
        """What all ranks do: the strongest of their wishes. Give it to `denoise`."""
        return strongest(self._gather_objects(decision))

    def _guided_velocity(
        self, state: RenderState, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, BranchCache], int]:
        if self.mesh.plan.cfg == 1:
            return super()._guided_velocity(state, timestep)
        low_noise, guidance = self._expert(state.recipe, timestep)
        branch = ("positive", "negative")[self.mesh.cfg.index]
        velocity, caches, num_blocks_run = self._branch_velocity(state, branch, timestep, low_noise=low_noise)
        positive, negative = self.mesh.cfg.all_gather(velocity)
        counts = self.mesh.cfg.sum(torch.tensor([num_blocks_run], device=self.device))
        return negative + guidance * (positive - negative), caches, int(counts)

    def _evaluation(
        self, state: RenderState, branch: str, timestep: torch.Tensor, *, low_noise: bool
    ) -> LocalEvaluation:
        alone = super()._evaluation(state, branch, timestep, low_noise=low_noise)
        if self.mesh.sequence.size == 1:
            return alone
        return RankEvaluation(
            mesh=self.mesh,
            **{name: getattr(alone, name) for name in alone.__dataclass_fields__ if not name.startswith("_")},
        )

    def _is_mine(self, cache_name: str) -> bool:
        own = ("positive", "negative")[self.mesh.cfg.index]
        return self.mesh.plan.cfg == 1 or cache_name.startswith(own)

    def _map_hidden(
        self, state: RenderState, tensors: Mapping[str, torch.Tensor], direction: str
    ) -> dict[str, torch.Tensor]:
        """Hidden states among a cache's tensors split or gathered; the others are the same on every rank."""
        shard = SequenceShard(mesh=self.mesh, length=self._num_tokens(state))
        return {
            name: getattr(shard, direction)(tensor) if name in PER_TOKEN else tensor for name, tensor in tensors.items()
        }

    def _num_tokens(self, state: RenderState) -> int:
        frames, height, width = state.latents_BCTHW.shape[2:]
        if state.conditioning.reference_latents_BCTHW is not None:
            frames += 1
        _, rows, columns = self.model.pipe.dit.patch_size
        return frames * (height // rows) * (width // columns)

    def _from_rank_0(self, work: Callable[[], Value]) -> Value:
        """Its result, or its error, on every rank: else the others would wait for it in a collective."""
        return work() if self.mesh.plan.world_size == 1 else self._vae.from_rank_0(work)

    def _gather_objects(self, value: Value) -> list[Value]:
        if self.mesh.plan.world_size == 1:
            return [value]
        values: list = [None] * self.mesh.plan.world_size
        dist.all_gather_object(values, value)
        return values
