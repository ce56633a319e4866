"""What the ranks of tests/dist do: each function runs on all of them and gives a value to compare."""

import torch

from sakuga.parallel import Mesh, ParallelPlan, SequenceAttention, SequenceShard
from sakuga.parallel.sequence import attention_with_lse
from sakuga.wan.attention import sdpa

MESHES: dict[ParallelPlan, Mesh] = {}


def mesh_of(plan: ParallelPlan) -> Mesh:
    """Made once: groups live as long as their processes."""
    if plan not in MESHES:
        MESHES[plan] = Mesh.create(plan)
    return MESHES[plan]


def qkv(length: int, num_heads: int, head_dim: int = 8, seed: int = 0) -> list[torch.Tensor]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, length, num_heads * head_dim, generator=generator) for _ in range(3)]


def split_attention(plan: ParallelPlan, length: int, num_heads: int) -> torch.Tensor:
    """Attention over shards, gathered."""
    shard = SequenceShard(mesh=mesh_of(plan), length=length)
    parts = [shard.split(x) for x in qkv(length, num_heads)]
    return shard.gather(SequenceAttention(shard, sdpa)(*parts, num_heads))


def yunchangs_ulysses(plan: ParallelPlan, length: int, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Our attention over shards and that of xfuser's library, both gathered."""
    import torch.distributed as dist
    from yunchang import LongContextAttention, set_seq_parallel_pg
    from yunchang.kernels import AttnType

    mesh = mesh_of(plan)
    set_seq_parallel_pg(plan.ulysses, plan.ring, dist.get_rank(), dist.get_world_size())
    shard = SequenceShard(mesh=mesh, length=length)
    q, k, v = (shard.split(x).unflatten(2, (num_heads, -1)) for x in qkv(length, num_heads))
    theirs = LongContextAttention(attn_type=AttnType.TORCH_MATH, ring_impl_type="basic")(q, k, v)
    return split_attention(plan, length, num_heads), shard.gather(theirs.flatten(2).contiguous())


def split_gradient(plan: ParallelPlan, length: int, num_heads: int) -> list[torch.Tensor]:
    """Gradients of a loss that weighs each token differently, each rank's part of the tokens gathered."""
    shard = SequenceShard(mesh=mesh_of(plan), length=length)
    parts = [shard.split(x).requires_grad_(True) for x in qkv(length, num_heads)]
    out = SequenceAttention(shard, sdpa)(*parts, num_heads)
    weights = shard.split(torch.linspace(1, 2, length)[None, :, None].expand(2, -1, out.shape[2]))
    (out * weights).sum().backward()
    return [shard.gather(part.grad) for part in parts]


def whole_gradient(length: int, num_heads: int) -> list[torch.Tensor]:
    inputs = [x.requires_grad_(True) for x in qkv(length, num_heads)]
    out = sdpa(*inputs, num_heads)
    (out * torch.linspace(1, 2, length)[None, :, None]).sum().backward()
    return [x.grad for x in inputs]


def split_and_gather(plan: ParallelPlan, length: int) -> tuple[torch.Tensor, list[int]]:
    shard = SequenceShard(mesh=mesh_of(plan), length=length)
    x = torch.arange(length * 3, dtype=torch.float32).view(1, length, 3)
    part = shard.split(x)
    return shard.gather(part), list(part.shape)


def exchange_of_branches(plan: ParallelPlan) -> tuple[list[float], float]:
    """What the other branch has, and a sum over the sequence."""
    mesh = mesh_of(plan)
    value = torch.tensor([float(mesh.rank)])
    return [float(x) for x in mesh.cfg.all_gather(value)], float(mesh.sequence.sum(value))


def wrong_world(plan: ParallelPlan) -> str:
    from sakuga.errors import PlanError

    try:
        Mesh.create(plan)
    except PlanError as error:
        return str(error)
    return "no error"


def log_sum_exp(length: int) -> float:
    """Error of the kernel's log-sum-exp; the same on every rank, so that no rank idles."""
    q, k, v = (x.unflatten(2, (2, -1)) for x in qkv(length, 2))
    _, lse = attention_with_lse(q, k, v)
    scores = torch.einsum("bsnd,btnd->bsnt", q, k) * q.shape[-1] ** -0.5
    return float((lse - scores.logsumexp(-1)).abs().max())


ENGINES: dict = {}


def rank_engine(plan: ParallelPlan, family: str, tokenizer_dir: str):
    from sakuga.engine.ranks import RankEngine

    if (plan, family) not in ENGINES:
        import tiny_wan

        model = getattr(tiny_wan, f"tiny_{family}")(tokenizer_dir)
        ENGINES[plan, family] = RankEngine(model, mesh_of(plan))
    return ENGINES[plan, family]


def render_latents(plan: ParallelPlan, family: str, tokenizer_dir: str, recipe, inputs, snapshot=None) -> tuple:
    """Latents at the end, blocks run, and frames; with `snapshot` = (step, path) saved there and gone on from it."""
    engine = rank_engine(plan, family, tokenizer_dir)
    state = engine.start(recipe, inputs)
    while not state.is_done:
        if snapshot is not None and state.step == snapshot[0]:
            engine.snapshot(state, snapshot[1])
            state = engine.restore(snapshot[1], recipe)
        state = engine.step(state)
    return state.latents_BCTHW, state.num_blocks_run, engine.finish(state).frames_THWC


def resume_latents(plan: ParallelPlan, family: str, tokenizer_dir: str, path) -> torch.Tensor:
    """Another plan takes a snapshot over."""
    engine = rank_engine(plan, family, tokenizer_dir)
    state = engine.restore(path)
    while not state.is_done:
        state = engine.step(state)
    return state.latents_BCTHW


def refused(plan: ParallelPlan, family: str, tokenizer_dir: str, recipe, inputs) -> str:
    """The error that every rank gets, and none is left waiting."""
    from sakuga.errors import SakugaError

    try:
        rank_engine(plan, family, tokenizer_dir).start(recipe, inputs)
    except SakugaError as error:
        return f"{error.code} {error}"
    return "no error"


def four_steps():
    """A recipe that is over soon."""
    from sakuga.recipe import RenderRecipe

    return RenderRecipe(
        model="wan2.1-t2v-1.3b", weights_sha256="ab" * 32, prompt="x", width=32, height=32, num_frames=5,
        num_inference_steps=4, seed=1,
    )  # fmt: skip


def agreed(plan: ParallelPlan, tokenizer_dir: str, wishes: list) -> tuple:
    """Each rank wishes for something after the second step; where the loop ended, and whether it was saved."""
    from sakuga.engine import RenderInputs
    from sakuga.engine.loop import Decision, denoise

    engine = rank_engine(plan, "t2v", tokenizer_dir)
    wish, saved = Decision(wishes[engine.mesh.rank]), []
    end = denoise(
        engine,
        engine.start(four_steps(), RenderInputs()),
        lambda state: wish if state.step == 2 else Decision.GO_ON,
        snapshot=lambda state: saved.append(state.step),
        agree=engine.agree,
    )
    return end.decision.value, end.state.step, saved


def lose_a_rank(plan: ParallelPlan, tokenizer_dir: str, lost: int) -> str:
    """One rank ends in the middle of a step, as a killed process does; what the others say."""
    import os

    from sakuga.engine import RenderInputs
    from sakuga.errors import RankLostError

    engine = rank_engine(plan, "t2v", tokenizer_dir)
    state = engine.step(engine.start(four_steps(), RenderInputs()))
    if engine.mesh.rank == lost:
        block = engine.model.pipe.dit.blocks[1]
        block.register_forward_pre_hook(lambda *_: os._exit(1))
        block.norm1.register_forward_pre_hook(lambda *_: os._exit(1))
    try:
        engine.step(state)
    except RankLostError as error:
        return f"{error.code}: {error}"
    return "no error"


def one_rank_fails(plan: ParallelPlan, tokenizer_dir: str, failing: int) -> str:
    """One rank runs out of memory in the middle of a step and lives on; what each of them says."""
    from sakuga.engine import RenderInputs
    from sakuga.errors import SakugaError

    engine = rank_engine(plan, "t2v", tokenizer_dir)
    state = engine.step(engine.start(four_steps(), RenderInputs()))

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("simulated")

    if engine.mesh.rank == failing:
        engine.model.pipe.dit.blocks[1].norm1.register_forward_pre_hook(exhausted)
    try:
        engine.step(state)
    except SakugaError as error:
        return f"{error.code}: {error}"
    return "no error"


def render_row(row: dict, recipe, inputs, folder: str, tokenizer_dir: str, resume_at):
    """A row of the matrix of features on these ranks."""
    from pathlib import Path

    import matrix

    return matrix.render(
        row, recipe, inputs, Path(folder), tokenizer_dir, resume_at, mesh_of(matrix.PLANS[row["plan"]])
    )


def vae_of(kind: str):
    """Small and random, the same on every rank."""
    import tiny_wan
    from sakuga.wan.mini import MiniConfig

    makers = {"wan2.1": tiny_wan.TinyVae, "wan2.2": tiny_wan.TinyVae38, "mini": MiniConfig().build_vae}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return makers[kind]().eval().requires_grad_(False)


def through_vae(vae, direction: str, x: torch.Tensor, tiling: dict) -> torch.Tensor:
    with torch.no_grad():
        return getattr(vae, direction)(x, device="cpu", tiled=True, **tiling)


def shared_vae(plan: ParallelPlan, kind: str, direction: str, x: torch.Tensor, tiling: dict) -> tuple:
    """The result, the number of tiles that this rank computed, and whether a stand-in was left behind."""
    from sakuga.parallel import SharedVae

    vae, num_tiles = vae_of(kind), 0

    def count() -> None:
        nonlocal num_tiles
        num_tiles += 1

    shared = SharedVae(vae, mesh_of(plan), torch.device("cpu"), count)
    result = shared.from_rank_0(lambda: through_vae(vae, direction, x, tiling))
    return result, num_tiles, "tiled_decode" in vars(vae) or direction in vars(vae.model)


class Unpicklable(Exception):
    """Its pickle cannot be read back: the constructor wants two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def vae_fails(plan: ParallelPlan, tokenizer_dir: str, recipe, inputs, stage: str, failing: int) -> str:
    """The error that every rank gets when the VAE of one breaks, after which the next render must work."""
    engine = rank_engine(plan, "control", tokenizer_dir)
    network = engine.model.pipe.vae.model
    broken = "encoder" if stage == "start" else "decoder"
    hook = None

    def breaks(*_: object) -> None:
        raise Unpicklable("no room on rank", str(engine.mesh.rank))

    def hook_up() -> None:
        nonlocal hook
        if engine.mesh.rank == failing:
            hook = getattr(network, broken).register_forward_pre_hook(breaks)

    text = "no error"
    try:
        if stage == "start":
            hook_up()
        state = engine.start(recipe, inputs)
        while not state.is_done:
            state = engine.step(state)
        hook_up()
        engine.finish(state)
    except RuntimeError as error:
        text = str(error)
    if hook is not None:
        hook.remove()
    return text


def load_mapped(folder: str, suffix: str) -> dict[str, int]:
    """Load a model on this rank while the others do; how much memory that took here, in bytes, and of whom."""
    import gc
    from pathlib import Path

    import torch.distributed as dist

    from mapped_model import load_large

    load_large(Path(folder), suffix)  # and dropped: all that is imported on the way takes 110 MB itself
    gc.collect()
    before = memory_bytes()
    dist.barrier()  # nobody loads before all have measured
    model = load_large(Path(folder), suffix)
    total = sum(float(tensor.sum()) for tensor in model.pipe.dit.state_dict().values())
    assert total != 0, "every page was read"
    gc.collect()
    dist.barrier()  # all hold it
    after = memory_bytes()
    dist.barrier()
    return {name: after[name] - before[name] for name in before}


def memory_bytes() -> dict[str, int]:
    """Of this process: `Anonymous`, which nobody else has, and `Pss`, in which shared pages are divided by sharers."""
    from pathlib import Path

    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ("Anonymous:", "Pss:")}


def dancer():
    """A short render of Wan-mini whose step cache skips some steps."""
    from pathlib import Path

    from sakuga.engine.resolve import resolve
    from sakuga.recipe import parse_request
    from sakuga.wan.catalogue import card

    request = {"prompt": "A dancer.", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 12, "seed": 1}
    recipe, inputs, _ = resolve(parse_request(request | {"step_cache": "forecast:0.05"}), card("wan-mini"), Path())
    return recipe, inputs


def dance(plan: ParallelPlan) -> tuple[torch.Tensor, int]:
    from sakuga.engine import LocalEngine
    from sakuga.engine.ranks import RankEngine

    engine = RankEngine(LocalEngine.load("wan-mini").model, mesh_of(plan))
    state = engine.start(*dancer())
    while not state.is_done:
        state = engine.step(state)
    return state.latents_BCTHW, state.num_blocks_run
