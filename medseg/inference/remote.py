"""Inference on the workers of a cluster: one model a worker, each case by `onecase.infer_case`, the same sidecars."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.config.sections import InferSection
from medseg.durable import remove_stale_temporaries, sha256_json
from medseg.errors import EnvironmentFault, MedsegError
from medseg.inference.cases import InferCase, refuse_output
from medseg.inference.decoding import CaseReader
from medseg.inference.onecase import Terms, infer_case
from medseg.inference.pipeline import DEFAULT, RunOptions
from medseg.inference.report import CaseReport
from medseg.inference.stage import report_folder, terms_of
from medseg.runner.pool import Outcome

if TYPE_CHECKING:
    from medseg.inference.ensemble import MaskMaker
    from medseg.runner.cluster import Cluster

_OPEN: dict[str, tuple[Terms, CaseReader]] = {}
"""On a worker: the model of the run that it works for, under the run's key; at most one."""


@dataclass(frozen=True, kw_only=True)
class RemoteRun:
    """What a worker needs to know of a run; small, for it travels with every case.

    Attributes:
        folders: of the models, absolute.
        section: how they are applied.
        device: as the command was told; None takes a GPU where the worker has one.
        output: folder of the masks, absolute.
        options: of the run.
        settings: of the command's own engine, which the worker's must equal.
    """

    folders: tuple[Path, ...]
    section: InferSection
    device: str | None
    output: Path
    options: RunOptions
    settings: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Equal for two runs only where one loaded model serves both."""
        return sha256_json([repr(self.options), self.section.model_dump(mode="json"), *map(str, self._rest())])

    def _rest(self) -> tuple[object, ...]:
        return (*self.folders, self.device, self.output, self.settings)


def infer_on_cluster(
    engine: MaskMaker,
    cases: Sequence[InferCase],
    *,
    folders: Sequence[Path],
    output: Path,
    cluster: Cluster,
    device: str | None = None,
    options: RunOptions = DEFAULT,
) -> list[CaseReport]:
    """As `stage.infer_folder`, with the cases done by the cluster's workers.

    Args:
        engine: of this command, whose settings decide what is done; it computes nothing.
        cases: of the folder.
        folders: of the engine's models, which the workers load by the same paths.
        output: folder of the masks, on a file system that the workers share.
        cluster: connected.
        device: as the command was told; "cuda" and None take the workers with the resource GPU where there are any.
        options: of the run; a shard has no place here.

    Raises:
        LockedError: another process writes the folder.
        UsageError: two masks would have one name, or there is no case.
        EnvironmentFault: the cluster is lost, has no GPU although one is asked for, or can't do the cases.
    """
    refuse_output(cases, output, options.spec, engine.class_names, overwrite=options.overwrite)
    output.mkdir(parents=True, exist_ok=True)
    has_gpus = cluster.has_gpus()
    if device is not None and device.startswith("cuda") and not has_gpus:
        raise EnvironmentFault(
            "--device cuda: no worker has the resource GPU; start them with dask worker --resources GPU=1"
        )
    run = RemoteRun(
        folders=tuple(folder.resolve() for folder in folders),
        section=engine.section,
        device=device,
        output=output.resolve(),
        options=replace(options, shard=None),
        settings=tuple(sorted((engine.settings() | options.spec.settings()).items())),
    )
    gpu = has_gpus and device != "cpu"

    def work(part: Sequence[InferCase]) -> Generator[CaseReport, None, None]:
        remove_stale_temporaries(output)
        items = [(case.id, _absolute(case)) for case in part]
        try:
            with closing(_outcomes(cluster, run, items, output, gpu=gpu)) as outcomes:
                yield from (_report(outcome) for outcome in outcomes)
        finally:
            remove_stale_temporaries(output)  # of workers that were killed on this machine

    return report_folder(work, cases, output=output)


def _outcomes(
    cluster: Cluster, run: RemoteRun, items: Sequence[tuple[str, InferCase]], output: Path, *, gpu: bool
) -> Generator[Outcome[CaseReport], None, None]:
    found: Iterator[Outcome[CaseReport]] = cluster.run_cases(partial(infer_item, run), items, folder=output, gpu=gpu)
    yield from found


def _absolute(case: InferCase) -> InferCase:
    return replace(case, images=tuple(image.absolute() for image in case.images))


def _report(outcome: Outcome[CaseReport]) -> CaseReport:
    if outcome.value is not None:
        return outcome.value
    if outcome.exit_code == EnvironmentFault.exit_code:
        raise EnvironmentFault(outcome.error)
    return CaseReport(id=outcome.case_id, status="failed", reason=outcome.error)


def infer_item(run: RemoteRun, case: InferCase) -> CaseReport:
    """One case on this worker, with the run's model, which is loaded with the first case.

    Raises:
        EnvironmentFault: the output can't be written, or this worker's model or libraries are not the command's.
    """
    if run.key not in _OPEN:
        for _, reader in _OPEN.values():
            reader.close()
        _OPEN.clear()
        _OPEN[run.key] = _opened(run)
    return infer_case(_OPEN[run.key][0], case)


def _opened(run: RemoteRun) -> tuple[Terms, CaseReader]:
    import torch

    from medseg.inference.ensemble import build_engine
    from medseg.inference.model import load_models
    from medseg.networks.precision import choose_device
    from medseg.runner.cluster_worker import worker_threads

    torch.set_num_threads(worker_threads())
    device = choose_device(run.device)
    try:
        models = [model for folder in run.folders for model in load_models(folder, device=device)]
    except MedsegError as error:
        raise EnvironmentFault(f"cluster: a worker can't load the model ({error}); give it the same files") from error
    engine = build_engine(models, run.section, device=device, memory_bytes=run.options.memory_bytes, scratch=run.output)
    settings = engine.settings() | run.options.spec.settings()
    if settings != dict(run.settings):
        names = (
            ", ".join(sorted(name for name, value in run.settings if settings.get(name) != value)) or "more settings"
        )
        raise EnvironmentFault(f"cluster: a worker has other {names} than the command; give it the same files")
    reader = CaseReader(isolation=run.options.isolation, timeout_seconds=run.options.read_seconds)
    return terms_of(engine, output=run.output, reader=reader, options=run.options), reader
