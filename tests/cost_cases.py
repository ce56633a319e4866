"""Recipes and plans of cards, for the tests of the cost model."""

from sakuga.engine.plan import ExecutionPlan
from sakuga.parallel import ParallelPlan
from sakuga.recipe import ImageRef, RenderRecipe, VideoRef
from sakuga.wan.catalogue import card
from sakuga.wan.memory import MemoryPlan

NOTHING = "0" * 64
GB = 10**9


def recipe_of(name: str = "wan2.1-i2v-14b-720p", *roles: str, **fields) -> RenderRecipe:
    entry = card(name)
    names = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale", "guidance_scale_2", "flow_shift")
    images = tuple(ImageRef(role=role, sha256=NOTHING) for role in roles if role.endswith("image"))
    videos = tuple(VideoRef(role=role, sha256=NOTHING) for role in roles if not role.endswith("image"))
    plain = {key: getattr(entry, key) for key in names} | {"precision": entry.precision}
    return RenderRecipe(
        **(
            {"model": name, "weights_sha256": NOTHING, "prompt": "a dance", "seed": 0}
            | plain
            | {"images": images, "videos": videos}
            | fields
        )
    )


def plan_of(memory: str = "resident", **parallel: int) -> ExecutionPlan:
    return ExecutionPlan(parallel=ParallelPlan(**parallel), memory=MemoryPlan.parse(memory))
