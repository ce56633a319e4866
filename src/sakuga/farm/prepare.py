"""Prepares a training data set: files in, a cache of latents and texts out, with a report on every file.

With workers, samples go over a pool of actors by Ray Data; without, this process takes one after the other. Both run
the same `PrepareWorker`, and what it puts into the cache stays, so a run that was stopped goes on where it was.

    OUT/prepared.json, OUT/report.json, OUT/contact_sheet.png, OUT/cache

Run: pytest tests/ray/test_prepare.py
"""

import contextlib
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sakuga import settings
from sakuga.errors import ClusterError, DataError, OutputError, SakugaError, WorkerDiedError, shown
from sakuga.farm.lock import folder_lock
from sakuga.farm.worker import ATTEMPTS_FOLDER, count_attempt, error_columns, forget_attempts
from sakuga.media import check_output_dir, contact_sheet, save_image, write_json_atomic
from sakuga.training.clips import ClipSpec, cut, plan_clip
from sakuga.training.encoding import EncodedSample, SampleEncoder, choose_task, key_of_text
from sakuga.training.layouts import DataSet, SourceSample, read_data, split_of
from sakuga.training.prepared import LatentCache, PreparedSample, PreparedSet
from sakuga.wan.catalogue import card as card_named
from sakuga.wan.loading import WeightSet, load_model, locate

log = logging.getLogger(__name__)

REPORT_NAME = "report.json"
SHEET_NAME = "contact_sheet.png"
CACHE_NAME = "cache"
SHEET_ROWS = 16
MACHINE_FAULTS = (OSError, MemoryError)
"""Storage, output and memory: the sample is not to blame, and the next one would meet the same."""

OnSample = Callable[[int, int], None]
"""Called with samples done and the number of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRequest:
    """What to make of a data set; None leaves a value to the model's card."""

    data: Path
    out: Path
    model: str = "wan-mini"
    weights: str | None = None
    task: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    """For samples without a caption."""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    cache: str | None = None
    """Folder or s3://bucket/prefix; None: OUT/cache."""
    device: str = "cpu"
    precision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """What became of one sample."""

    name: str
    status: str
    """"used" or "rejected"."""
    split: str | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSummary:
    """What a run left."""

    out: Path
    task: str
    num_train: int
    num_test: int
    num_new: int
    """Videos that this run encoded; the cache had the others."""
    num_rejected: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparePlan:
    """What all workers share."""

    request: PrepareRequest
    samples: tuple[SourceSample, ...]
    spec: ClipSpec
    task: str
    cache: str
    num_workers: int


class PrepareWorker:
    """One model; encodes the sample of an index and answers with columns."""

    def __init__(self, plan: PreparePlan) -> None:
        import torch

        request, environment = plan.request, settings.from_environment()
        if plan.num_workers:  # Ray sets OMP_NUM_THREADS=1 in an actor with one logical CPU
            torch.set_num_threads(environment.num_threads or max(1, settings.usable_cores() // plan.num_workers))
        card = card_named(request.model)
        weights = locate(
            card, request.weights, cache_dir=environment.cache_dir, endpoint_url=environment.s3_endpoint_url
        )
        model = load_model(
            weights, device=request.device, precision=request.precision or card.precision, stages=("encode",)
        )
        local = environment.cache_dir / "latents"
        cache = LatentCache(plan.cache, local, endpoint_url=environment.s3_endpoint_url)
        self._plan = plan
        self._encoder = SampleEncoder(model, cache, plan.spec, plan.task)
        self._encoder.encode_text("")

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        index = int(batch["index"][0])
        encoded, reason = self._encode(index)
        fields = json.dumps(None if encoded is None else dataclasses.asdict(encoded))
        return {"index": np.array([index]), "encoded": np.array([fields]), "reason": np.array([reason])}

    def _encode(self, index: int) -> tuple[EncodedSample | None, str]:
        sample, out = self._plan.samples[index], self._plan.request.out
        try:
            count_attempt(out, str(index))
            encoded, reason = self._encoder.encode(sample), ""
        except MACHINE_FAULTS:
            raise
        except Exception as error:
            encoded, reason = None, error_columns(error)[1]
            log.warning("rejected %s", shown(sample.name), exc_info=not isinstance(error, SakugaError))
            if isinstance(error, WorkerDiedError):
                reason = "its process died each time, most often for want of memory; cut or shrink the file"
        forget_attempts(out, str(index))
        return encoded, reason


def prepare(
    request: PrepareRequest, *, num_workers: int = 0, address: str | None = "local", on_sample: OnSample | None = None
) -> PrepareSummary:
    """Encode what the cache lacks and write the index, the report and the contact sheet.

    Raises:
        DataError: the data cannot be read, or no sample of it can be used (the report then says why).
        ModelError, GeometryError, DeviceError, WeightsError, PrecisionError, OutputError, BusyError: before it begins.
        StorageError, MemoryLimitError, ClusterError: the machine's, in the middle; run again, it goes on.
    """
    began = time.monotonic()
    plan, data, found = _planned(request, num_workers)
    out = plan.request.out
    with folder_lock(out):
        answers = _encoded(plan, address, on_sample)
        prepared = PreparedSet(
            model=found.card.name, weights_sha256=found.sha256, task=plan.task,
            samples=_prepared_samples(plan, answers), empty_text_key=key_of_text(found.card, found.file_sha256, ""),
            cache=plan.cache if request.cache is not None else CACHE_NAME,
        )  # fmt: skip
        reports = _reports(data, plan, answers, prepared)
        summary = PrepareSummary(
            out=out,
            task=plan.task,
            num_train=len(prepared.of("train")),
            num_test=len(prepared.of("test")),
            num_new=sum(isinstance(answer, EncodedSample) and answer.is_new for answer in answers.values()),
            num_rejected=sum(report.status == "rejected" for report in reports),
            seconds=round(time.monotonic() - began, 2),
        )
        _write(prepared, reports, summary, data, plan)
    return summary


def _planned(request: PrepareRequest, num_workers: int) -> tuple[PreparePlan, DataSet, WeightSet]:
    """All that can be refused before a model is loaded."""
    if settings.in_submitted_job():
        _check_job_paths(request)
    environment, card = settings.from_environment(), card_named(request.model)
    out, weights = check_output_dir(request.out).resolve(), request.weights
    if weights is not None and "://" not in weights:
        weights = str(Path(weights).resolve())  # a worker's current folder is another one
    request = dataclasses.replace(request, out=out, weights=weights)
    spec = ClipSpec(
        width=request.width or card.width,
        height=request.height or card.height,
        num_frames=request.num_frames or card.num_frames,
        fps=request.fps or card.fps,
        size_multiple=card.size_multiple,
    )
    card.check_geometry(spec.width, spec.height, spec.num_frames)
    cache = request.cache or str(out / CACHE_NAME)
    if "://" not in cache:
        cache = str(check_output_dir(Path(cache)).resolve())
    data = read_data(request.data.resolve(), where=request.where, prompt=request.prompt)
    plan = PreparePlan(
        request=request, samples=data.samples, spec=spec, task=choose_task(card, request.task, data.samples),
        cache=cache, num_workers=min(num_workers, len(data.samples)),
    )  # fmt: skip
    found = locate(card, weights, cache_dir=environment.cache_dir, endpoint_url=environment.s3_endpoint_url)
    return plan, data, found


def _check_job_paths(request: PrepareRequest) -> None:
    from sakuga.farm.bulk import check_job_paths

    check_job_paths(request.data, request.out)
    if request.cache is not None and "://" not in request.cache and not Path(request.cache).is_absolute():
        raise OutputError(f"--cache is {shown(request.cache)}, which a job would lose; give an absolute path or s3://")


def _encoded(plan: PreparePlan, address: str | None, on_sample: OnSample | None) -> dict[int, EncodedSample | str]:
    """Of every sample, by its place in the plan, what was encoded or why it is rejected."""
    shutil.rmtree(plan.request.out / ATTEMPTS_FOLDER, ignore_errors=True)
    answers: dict[int, EncodedSample | str] = {}
    try:
        for index, answer in _answers(plan, address):
            answers[index] = answer
            if on_sample is not None:
                on_sample(len(answers), len(plan.samples))
    except KeyboardInterrupt:
        done = f"{len(answers)} of {len(plan.samples)} samples are done and stay in the cache"
        raise KeyboardInterrupt(f"stopped; {done}; run the same command again to go on") from None
    finally:
        shutil.rmtree(plan.request.out / ATTEMPTS_FOLDER, ignore_errors=True)
    return answers


def _answers(plan: PreparePlan, address: str | None) -> Iterator[tuple[int, EncodedSample | str]]:
    """Of every sample its outcome, or why it is rejected, as they are done."""
    if not plan.samples:
        return
    rows = [{"index": index} for index in range(len(plan.samples))]
    if not plan.num_workers:
        worker = PrepareWorker(plan)
        for row in rows:
            columns = worker({"index": np.array([row["index"]])})
            yield _answer({name: values[0] for name, values in columns.items()})
        return
    from sakuga.farm.interrupt import signals_interrupt
    from sakuga.farm.rows import LOCAL, RAY_FAILURES, check_gpus, check_worker_device, cluster, outcomes

    check_worker_device(plan.request.device)
    on_gpu = plan.request.device == "cuda"
    try:
        with (
            cluster(address, plan.num_workers),
            signals_interrupt(),
            contextlib.closing(
                outcomes(rows, PrepareWorker, plan, num_workers=plan.num_workers, num_gpus=int(on_gpu))
            ) as results,
        ):
            if on_gpu:
                check_gpus(plan.num_workers, may_grow=address != LOCAL)
            for columns in results:
                yield _answer(columns)
    except RAY_FAILURES as error:
        words = str(getattr(error, "cause", None) or error).strip().partition("\n")[0]
        raise ClusterError(
            f"Ray failed ({words}); what is encoded stays in the cache, run the same command again"
        ) from error


def _answer(columns: Mapping[str, object]) -> tuple[int, EncodedSample | str]:
    fields = json.loads(str(columns["encoded"]))
    index = int(str(columns["index"]))
    if fields is None:
        return index, str(columns["reason"])
    fields["notes"] = tuple(fields["notes"])
    return index, EncodedSample(**fields)


def _prepared_samples(plan: PreparePlan, answers: Mapping[int, EncodedSample | str]) -> tuple[PreparedSample, ...]:
    """In the order of the data set, whoever was done first."""
    used = [(sample, answer) for index, sample in enumerate(plan.samples)
            if isinstance(answer := answers[index], EncodedSample)]  # fmt: skip
    splits = split_of([answer.file_sha256 for _, answer in used])
    return tuple(
        PreparedSample(
            name=sample.name, split=sample.split or split, video_key=answer.video_key, text_key=answer.text_key,
            prompt=sample.prompt, width=answer.width, height=answer.height, num_frames=answer.num_frames,
            fps=float(plan.spec.fps), seed=sample.seed,
        )
        for (sample, answer), split in zip(used, splits, strict=True)
    )  # fmt: skip


def _reports(
    data: DataSet, plan: PreparePlan, answers: Mapping[int, EncodedSample | str], prepared: PreparedSet
) -> list[FileReport]:
    reports = [FileReport(name=entry.name, status="rejected", reason=entry.reason) for entry in data.rejections]
    splits = {sample.name: sample.split for sample in prepared.samples}
    for index, sample in enumerate(plan.samples):
        answer = answers[index]
        if isinstance(answer, EncodedSample):
            reports.append(FileReport(name=sample.name, status="used", split=splits[sample.name], notes=answer.notes))
        else:
            reports.append(FileReport(name=sample.name, status="rejected", reason=answer, notes=sample.notes))
    return reports


def _write(
    prepared: PreparedSet, reports: Sequence[FileReport], summary: PrepareSummary, data: DataSet, plan: PreparePlan
) -> None:
    """The report first: it is there too when no sample can be used, which raises DataError."""
    files = [dataclasses.asdict(report) for report in reports]
    facts = {**dataclasses.asdict(summary), "out": str(summary.out), "model": prepared.model}
    write_json_atomic(summary.out / REPORT_NAME, {**facts, "num_left_out": data.num_left_out, "files": files})
    if not prepared.samples:
        first = next((f", such as {shown(report.name)}: {report.reason}" for report in reports), "")
        filtered = f", {data.num_left_out} left out by --where" if data.num_left_out else ""
        raise DataError(
            f"no usable sample in {shown(plan.request.data)}: {len(reports)} rejected{first}{filtered}; "
            f"{REPORT_NAME} says it of each"
        )
    save_image(summary.out / SHEET_NAME, contact_sheet(_strips(prepared, plan)))
    prepared.write(summary.out)


def _strips(prepared: PreparedSet, plan: PreparePlan) -> list[tuple[str, np.ndarray]]:
    """Title and frames of some samples, spread over the data set."""
    sources = {sample.name: sample for sample in plan.samples}
    count = min(SHEET_ROWS, len(prepared.samples))
    chosen = [prepared.samples[place] for place in np.linspace(0, len(prepared.samples) - 1, count).round().astype(int)]
    strips = []
    for sample in chosen:
        source = sources[sample.name]
        clip = cut(source, plan_clip(source, plan.spec), plan.spec)
        strips.append((f"{sample.name} ({sample.split}): {sample.prompt}", clip.frames_THWC))
    return strips
