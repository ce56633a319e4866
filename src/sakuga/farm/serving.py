"""The farm as a Serve application: the API in front, a deployment of lanes for each model.

`build` is what Serve configs name: `import_path: sakuga.farm.serving:build` with the fields of `FarmArgs` as `args`.
Run: pytest tests/ray/test_serving.py
"""

import tempfile
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle

from sakuga.api import ApiDeps, create_app
from sakuga.api.guarded import AddressGuard
from sakuga.api.webhooks import WebhookSender
from sakuga.cost import DeviceSpec
from sakuga.farm.auditing import AuditorReplica
from sakuga.farm.autoscaling import BacklogPolicy
from sakuga.farm.bundles import lane_placement
from sakuga.farm.pools import AuditArgs, FarmArgs, PoolArgs, StageArgs
from sakuga.farm.replica import LANE_GRACE_S, LaneReplica
from sakuga.farm.stages import StageReplica
from sakuga.parallel.plan import ParallelPlan
from sakuga.storage.objects import open_objects

APP_NAME = "sakuga"
HEALTH_S = 2.0
"""A lane whose replica was killed is seen by the next check: 10.8 s with Serve's default, 2.5 s with 1."""


def build(args: FarmArgs) -> serve.Application:
    """All deployments, bound."""
    lanes = {pool.model: _lanes(args, pool) for pool in args.pools}
    knobs = args.audits.model_dump()
    auditor = serve.deployment(
        name="auditor",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0.1},
        user_config=knobs,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=10,
    )
    api = serve.deployment(
        name="api",
        num_replicas=1,
        max_ongoing_requests=200,
        ray_actor_options={"num_cpus": 0.5},
        user_config=knobs,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=10,
    )
    return api(serve.ingress()(Api)).bind(args, lanes, auditor(AuditorReplica).bind(args))


class Api:
    """The HTTP side, and the sender of webhooks. The others' handles make them part of the application."""

    def __init__(self, farm: FarmArgs, lanes: dict[str, DeploymentHandle], auditor: DeploymentHandle) -> None:
        self._farm, self._others, self._audits = farm, (lanes, auditor), farm.audits
        self._stores, self._guard = farm.stores(), AddressGuard(trusted_origins=farm.trusted_origins)
        self._sender = WebhookSender(self._stores.webhooks, self._guard)
        self._sender.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        farm, here = self._farm, DeviceSpec.here()
        return create_app(
            ApiDeps(
                stores=self._stores,
                objects=open_objects(farm.objects),
                models={pool.model: pool.served(here) for pool in farm.pools},
                guard=self._guard,
                settings=farm.api,
                scratch=Path(tempfile.mkdtemp(prefix="sakuga-api-")),
                audit_share=lambda: self._audits.share,
            )
        )

    def reconfigure(self, config: dict[str, object]) -> None:
        """Serve's `user_config`, at the start and whenever it is deployed anew."""
        self._audits = AuditArgs.model_validate(config)

    def __del__(self) -> None:
        if hasattr(self, "_sender"):
            self._sender.stop()


def _lanes(farm: FarmArgs, pool: PoolArgs) -> serve.Application:
    stages = (_stage(pool, "encode", pool.encode), _stage(pool, "decode", pool.decode))
    return serve.deployment(**lane_options(farm, pool))(LaneReplica).bind(farm, pool, *stages)


def lane_options(farm: FarmArgs, pool: PoolArgs) -> dict:
    """What Serve is told about a pool's lanes."""
    placement, scaling = pool.placement(), pool.scaling
    options: dict = {
        "name": f"lanes-{pool.model}",
        "ray_actor_options": {"num_cpus": placement.replica_cpus, "num_gpus": 0},
        "health_check_period_s": HEALTH_S,
        "graceful_shutdown_timeout_s": LANE_GRACE_S,
    }
    if pool.simulated is None:
        options["placement_group_bundles"] = [dict(bundle) for bundle in placement.bundles]
        options["placement_group_strategy"] = placement.strategy
    if scaling.min_lanes == scaling.max_lanes:
        return options | {"num_replicas": scaling.min_lanes}
    policy = AutoscalingPolicy(
        policy_function=BacklogPolicy,
        policy_kwargs={
            "metrics_url": farm.metrics_url,
            "model": pool.model,
            "min_lanes": scaling.min_lanes,
            "max_lanes": scaling.max_lanes,
            "patience_s": scaling.patience_s,
            "keep_s": scaling.keep_s,
        },
    )
    return options | {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=scaling.min_lanes,
            max_replicas=scaling.max_lanes,
            initial_replicas=scaling.min_lanes,
            upscale_delay_s=0.0,  # the policy has its own
            downscale_delay_s=0.0,
            policy=policy,
        )
    }


def _stage(pool: PoolArgs, stage: str, args: StageArgs | None) -> serve.Application | None:
    if args is None:
        return None
    placement = lane_placement(
        ParallelPlan(), gpus_per_rank=0.0 if pool.device == "cpu" else args.gpus, cpus_per_rank=pool.cpus_per_rank
    )
    return serve.deployment(
        name=f"{stage}-{pool.model}",
        num_replicas=args.num_replicas,
        ray_actor_options={"num_cpus": placement.replica_cpus, "num_gpus": 0},
        placement_group_bundles=[dict(bundle) for bundle in placement.bundles],
        placement_group_strategy=placement.strategy,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=LANE_GRACE_S,
        max_ongoing_requests=1,
    )(StageReplica).bind(pool, stage, args)
