"""What can be known of a sweep before anything is started: files that its trials need, kernels that its device has not.

Nothing is loaded. Of GPUs that this process does not see, nothing is said.

Run: pytest tests/unit/test_tuning_start.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from sakuga import settings
from sakuga.engine.plan import ExecutionPlan
from sakuga.engine.resolve import bare_recipe, lora_file
from sakuga.engine.task import check_task
from sakuga.engine.verified import check_verified, features
from sakuga.errors import SakugaError, SweepError, shown
from sakuga.quality.adherence import named_attributes
from sakuga.recipe import LoraRef
from sakuga.storage import open_storage
from sakuga.training.layouts import read_data
from sakuga.tuning.cases import cases_of_manifest
from sakuga.tuning.points import render_fields, request_of, train_config
from sakuga.tuning.sweepfile import Sweep
from sakuga.tuning.training_runner import check_lengths, is_prepared
from sakuga.wan.attention import check_attention
from sakuga.wan.catalogue import card
from sakuga.wan.mini import mini_dir
from sakuga.wan.passport import read_passport
from sakuga.wan.precision import check_precision
from sakuga.wan.weights import find_parts


def check_start(sweep: Sweep) -> None:
    """Of a sweep that passed `check_points`. Raises SweepError, DataError, ManifestError or WeightsError."""
    found = card(sweep.model)
    if sweep.weights is None and not found.embedded:
        raise SweepError(
            f"{found.name} is not in the package; say where its files are with weights: FOLDER or s3://..."
        )
    if sweep.weights is not None and not sweep.weights.startswith("s3://"):
        find_parts(found, open_storage(sweep.weights, cache_dir=settings.from_environment().cache_dir))
    if sweep.kind == "training":
        check_lengths(sweep)
        if not is_prepared(sweep):
            _prompts_of(str(sweep.data), sweep.where)
    case = _first_case(sweep)
    if sweep.kind == "inference":
        _check("the base", lambda: _check_files(sweep, {**case, **sweep.base}))
        _check("reference", lambda: _check_render(sweep, {**case, **sweep.base, **sweep.reference}))
    elif case:
        _check("render", lambda: _check_render(sweep, {**case, **sweep.render}))
    first = {name: parameter.ends()[0] for name, parameter in sweep.parameters.items()}
    for name, parameter in sweep.parameters.items():
        for value in parameter.ends():
            point = {**first, name: value}
            _check(f"{name} {shown(value)} of the space", lambda point=point: _check_point(sweep, point, case))


def _check(words: str, check: Callable[[], None]) -> None:
    try:
        check()
    except SakugaError as error:
        raise SweepError(f"{words}: {error.message}") from error


def _first_case(sweep: Sweep) -> dict[str, object]:
    """Fields of a request; none without an evaluation."""
    evaluation = sweep.evaluation
    if evaluation is None:
        return {}
    if evaluation.manifest is not None:
        cases = cases_of_manifest(evaluation)
        _check_named(sweep, [str(case.fields["prompt"]) for case in cases])
        return dict(cases[0].fields)
    if evaluation.data is not None:
        _check_named(sweep, _prompts_of(evaluation.data, evaluation.where))
    takes_image = card(sweep.model).takes_first_frame
    return {"prompt": "a dancer"} | ({"input_image": "first.png"} if takes_image else {})


def _prompts_of(data: str, where: Mapping[str, str]) -> list[str]:
    samples = read_data(Path(data), where=where).samples
    if not samples:
        raise SweepError(f"{shown(data)} has no sample that can be used; check its files and the filter `where`")
    return [sample.prompt for sample in samples]


def _check_named(sweep: Sweep, prompts: Sequence[str]) -> None:
    unnamed = next((prompt for prompt in prompts if isinstance(named_attributes(prompt), str)), None)
    if "adherence" in sweep.objectives and unnamed is not None:
        raise SweepError(
            f"adherence is measured where prompts name colours and dance as synth's do, and {shown(unnamed)} does not; "
            "take another objective"
        )


def _check_point(sweep: Sweep, point: Mapping[str, object], case: Mapping[str, object]) -> None:
    if sweep.kind == "inference":
        _check_render(sweep, {**case, **render_fields(sweep.base, point)})
    elif (device := _device(sweep)) is not None:
        check_precision(train_config(sweep, point, num_steps=1, seed=0).base_precision, device)


def _device(sweep: Sweep) -> torch.device | None:
    """None for GPUs of other machines."""
    device = torch.device(sweep.executors.device)
    return device if device.type == "cpu" or torch.cuda.is_available() else None


def _check_files(sweep: Sweep, fields: Mapping[str, object]) -> None:
    found = card(sweep.model)
    for lora in request_of(sweep, fields, {}).loras:
        lora_dir = mini_dir() / "loras" if found.embedded else None
        read_passport(lora_file(lora, found, lora_dir, Path()))


def _check_render(sweep: Sweep, fields: Mapping[str, object]) -> None:
    _check_files(sweep, fields)
    found, device = card(sweep.model), _device(sweep)
    request = request_of(sweep, fields, {})
    recipe = bare_recipe(request, found)
    check_task(recipe, found)
    if device is None:
        return
    precision = check_precision(recipe.precision, device)
    if recipe.attention != "auto":
        check_attention(recipe.attention, device=device, head_dim=found.dit.head_dim, dtype=precision.dtype)
    if request.loras or sweep.kind == "training":
        recipe = dataclasses.replace(recipe, loras=(LoraRef(sha256="0" * 64, weight=1.0),))
    check_verified(features(recipe, found, ExecutionPlan()), device.type, allow=False)
