"""The stage: check every case, plan, then write every training case into the store.

``<output>`` holds ``checks.json fingerprint.json plan.yaml facts.jsonl index.json cases/<id>.<key>.bin``. A case's key is a
checksum of its files' content and of everything in the plan that shapes it, so an unchanged case is found done and a
changed plan never meets old data. ``index.json`` is written last.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from medseg.config.sections import PrepareSection
from medseg.durable import FolderLock, remove_stale_temporaries, sha256_json, write_json
from medseg.errors import EnvironmentFault, InputError, ManifestError
from medseg.imaging import read_header, resampled_shape
from medseg.manifest import Case, Manifest, ResolvedCase, resolve
from medseg.preparation.case import expand_channels, target_spacing_xyz_mm
from medseg.preparation.checks import Checks, check_set
from medseg.preparation.facts import CaseFacts, CaseInputs, FactsJournal, examine
from medseg.preparation.inputs import Fixed, InputMemory
from medseg.preparation.plan import Plan
from medseg.preparation.previous import PreviousStage, refuse_other_scans
from medseg.preparation.settling import fingerprint_of, settle_plan
from medseg.preparation.store import case_path, index_content
from medseg.preparation.work import CaseWork, end_with_server, prepare_case
from medseg.runner.pool import Outcome, RunCases, default_processes, run_cases
from medseg.runner.progress import CaseProgress

_LOG = logging.getLogger(__name__)
_BYTES_PER_VALUE = 28
"""Peak memory of one case over its number of voxel values: the scan as read, turned, cropped and resampled, in float32."""
_HEADERS_LOOKED_AT = 32
_ENVIRONMENT = EnvironmentFault.exit_code
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What a start of ``prepare`` found and did.

    Attributes:
        checks: every finding.
        plan: None after ``--check-only``.
        keys: case id to key, of the cases in the store now.
        read: scans that were read for the checks; those whose facts were known are not.
        written: cases written to the store.
        failed: case id to reason, for cases that passed the checks and could not be written.
        drift: how far the training cases have moved from those the plan was made from.
        previous: in a cascade, fold name to checksum of the first-stage model whose masks the store holds.
    """

    checks: Checks
    plan: Plan | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    read: int = 0
    written: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    drift: tuple[str, ...] = ()
    previous: Mapping[str, str] = field(default_factory=dict)

    @property
    def case_count(self) -> int:
        """Cases in the store now."""
        return len(self.keys)

    @property
    def sha256(self) -> str:
        """Of which cases the store holds in which version; the same as `PreparedData.sha256`."""
        return sha256_json(index_content(self.keys, self.checks.bad_cases, self.previous))

    @property
    def exit_code(self) -> int:
        """0, or 4 where cases were skipped or failed."""
        return 4 if self.failed or self.checks.bad_cases else 0


@dataclass(frozen=True)
class _Examined:
    facts: dict[str, CaseFacts]
    files: dict[str, tuple[Fixed, ...]]
    inputs: dict[str, CaseInputs]
    unread: dict[str, tuple[str, ...]]
    read: list[str] = field(default_factory=list)


def run_prepare(  # noqa: PLR0913 - each is a flag of the command
    section: PrepareSection,
    manifest: Manifest,
    *,
    data_root: Path,
    output: Path,
    allow_outside: bool = False,
    replan: bool = False,
    check_only: bool = False,
    verify: bool = False,
    plan_only: bool = False,
    device: str | None = "cpu",
    processes: int | None = None,
    show: Callable[[Checks], None] | None = None,
    previous: PreviousStage | None = None,
    run: RunCases | None = None,
) -> PrepareReport:
    """Checks, plans and prepares a data set; what is done already stays.

    Args:
        section: of the config.
        manifest: training cases are stored, testing cases only checked.
        data_root: where the manifest's paths start.
        output: the prepared folder.
        allow_outside: whether paths may lead out of the data root.
        replan: make the plan anew instead of keeping the one that is there.
        check_only: stop after the checks.
        verify: read every stored case whole and write damaged ones again.
        plan_only: stop when there is a plan.
        device: that will train, as the command has it; a new plan is fitted to its memory.
        processes: cases at a time; None goes by cores and free memory.
        show: is given the findings before any work begins.
        previous: the first stage's masks, where the section asks for a cascade's second stage.
        run: does the cases, as a cluster does; None does them in processes of this machine.

    Raises:
        InputError: there are bad cases and the section says stop, none is left, or one lacks its first-stage mask.
        ChangedError: the kept plan was made with other settings.
        LockedError: another process prepares the same folder.
        EnvironmentFault: the disk is full or not writable.
    """
    with FolderLock(output):
        for folder in (output, output / "cases"):
            remove_stale_temporaries(folder)
        examined = _examine_all(section, manifest, data_root, output, allow_outside, processes, run)
        checks = check_set(manifest, examined.facts, examined.unread)
        write_json(output / "checks.json", checks.plain())
        if show is not None:
            show(checks)
        if checks.bad_cases and section.on_bad_case == "stop":
            raise InputError(
                f"{manifest.name}: {len(checks.bad_cases)} of {checks.case_count} cases are refused; correct them or the "
                "manifest, or prepare the others with --skip-bad"
            )
        if check_only:
            return PrepareReport(checks=checks, read=len(examined.read))
        bad = set(checks.bad_cases)
        good = sorted(case.id for case in manifest.training if case.id not in bad)
        fingerprint = fingerprint_of(examined.facts, good)
        plan, drift = settle_plan(section, manifest, output, fingerprint, replan=replan, device=device)
        if plan_only:
            return PrepareReport(checks=checks, plan=plan, read=len(examined.read), drift=tuple(drift))
        if previous is not None:
            refuse_other_scans(previous, {case_id: _image_sha256s(examined, case_id) for case_id in good})
        return _store_all(
            PrepareReport(
                checks=checks,
                plan=plan,
                read=len(examined.read),
                drift=tuple(drift),
                previous={} if previous is None else previous.models,
            ),
            plan,
            [_work_of(examined, case_id, plan, output, previous) for case_id in good],
            output,
            manifest=manifest,
            processes=processes,
            verify=verify,
            run=run,
        )


# --- looking at the cases -------------------------------------------------------------------------------------------


def _examine_all(
    section: PrepareSection,
    manifest: Manifest,
    data_root: Path,
    output: Path,
    allow_outside: bool,
    processes: int | None,
    run: RunCases | None,
) -> _Examined:
    memory, journal = InputMemory(output.parent / ".prepare-inputs.json"), FactsJournal(output / "facts.jsonl")
    found = _Examined({}, {}, {}, {})
    waiting: list[tuple[str, CaseInputs]] = []
    cases = (*manifest.training, *manifest.testing)
    for case in cases:
        try:
            resolved = resolve(manifest, case, data_root, allow_outside)
        except ManifestError as error:
            found.unread[case.id] = tuple(fault.removeprefix(f"{case.id}: ") for fault in error.faults)
            continue
        inputs = _inputs_of(case, resolved, manifest, section, memory, journal)
        found.inputs[case.id] = inputs
        if inputs.known and inputs.key(inputs.known) == inputs.facts_key:
            found.facts[case.id], found.files[case.id] = journal.facts(case.id), inputs.known
        else:
            waiting.append((case.id, inputs))
    try:
        _examine_waiting(waiting, found, memory, journal, processes, run)
    finally:
        memory.save()
    journal.put_in_order({case.id for case in cases})
    return found


def _inputs_of(
    case: Case,
    resolved: ResolvedCase,
    manifest: Manifest,
    section: PrepareSection,
    memory: InputMemory,
    journal: FactsJournal,
) -> CaseInputs:
    names = (*case.images, *case.labels)
    return CaseInputs(
        id=case.id,
        images=resolved.images,
        labels=resolved.labels,
        names=names,
        channels=expand_channels(manifest.channels),
        classes=tuple((name, tuple(values)) for name, values in manifest.labels.items()),
        ignore=manifest.ignore,
        orientation=section.orientation,
        labelled=case.labelled,
        aliases=tuple(manifest.aliases.items()),
        facts_key=journal.key(case.id),
        known=memory.recall(names, (*resolved.images, *resolved.labels)),
    )


def _examine_waiting(
    waiting: Sequence[tuple[str, CaseInputs]],
    found: _Examined,
    memory: InputMemory,
    journal: FactsJournal,
    processes: int | None,
    run: RunCases | None,
) -> None:
    count = processes or default_processes(_BYTES_PER_VALUE * _most_values([i for _, i in waiting]))
    for outcome in _each("check", examine, waiting, count, run):
        inputs = found.inputs[outcome.case_id]
        if outcome.value is None:
            found.unread[outcome.case_id] = (str(outcome.error),)
            continue
        files, facts = outcome.value
        if facts is not None:
            journal.add(outcome.case_id, facts)
            found.read.append(outcome.case_id)
        found.facts[outcome.case_id] = facts or journal.facts(outcome.case_id)
        found.files[outcome.case_id] = files
        memory.learn(dict(zip(inputs.names, files, strict=True)))


def _most_values(cases: Sequence[CaseInputs]) -> int:
    """Voxel values of the largest of the cases, from the headers of those with the largest files; 0 if none is readable."""

    def size(inputs: CaseInputs) -> int:
        with contextlib.suppress(OSError):
            return sum(p.stat().st_size if p.is_file() else 1 << 30 for p in inputs.images)
        return 0

    most = 0
    for inputs in sorted(cases, key=size, reverse=True)[:_HEADERS_LOOKED_AT]:
        with contextlib.suppress(InputError):
            x, y, z = read_header(inputs.images[0], series=inputs.channels[0].series).shape
            most = max(most, x * y * z * len(inputs.channels))
    return most


def _each(
    what: str, task: Callable[[T], R], items: Sequence[tuple[str, T]], processes: int, run: RunCases | None
) -> Iterator[Outcome[R]]:
    """Outcomes of all items, with progress; a fault of the machine ends the stage at once."""
    if not items:
        return
    if run is None:
        multiprocessing.get_context("forkserver").set_forkserver_preload(["medseg.preparation.warm"])
        guarded = partial(end_with_server, task)
        outcomes = run_cases(guarded, items, processes=min(processes, len(items)), start="forkserver")
    else:
        outcomes = run(task, items)
    with CaseProgress(what, len(items)) as progress:
        for outcome in outcomes:
            if outcome.exit_code == _ENVIRONMENT:
                raise EnvironmentFault(str(outcome.error))
            progress.advance()
            yield outcome


# --- the store ------------------------------------------------------------------------------------------------------


def _image_sha256s(examined: _Examined, case_id: str) -> list[str]:
    count = len(examined.inputs[case_id].images)
    return [fixed.sha256 for fixed in examined.files[case_id][:count]]


def _work_of(examined: _Examined, case_id: str, plan: Plan, output: Path, previous: PreviousStage | None) -> CaseWork:
    facts, inputs = examined.facts[case_id], examined.inputs[case_id]
    assert facts.geometry is not None  # a case without is a bad one
    geometry = facts.geometry
    target = target_spacing_xyz_mm(geometry.spacing_xyz_mm, plan)
    prepared = resampled_shape(geometry.shape_xyz, geometry.spacing_xyz_mm, target)
    values = max(math.prod(facts.shape_xyz), math.prod(prepared)) * len(plan.channels)
    mask = None if previous is None else previous.masks[case_id].path
    return CaseWork.of(inputs, examined.files[case_id], plan, values, output, previous=mask)


def _store_all(
    report: PrepareReport,
    plan: Plan,
    works: Sequence[CaseWork],
    output: Path,
    *,
    manifest: Manifest,
    processes: int | None,
    verify: bool,
    run: RunCases | None,
) -> PrepareReport:
    waiting = [(work.id, work) for work in works if verify or not work.path.is_file()]
    largest = max((work.values for _, work in waiting), default=0)
    failed: dict[str, str] = {}
    written = 0
    for outcome in _each(
        "prepare",
        partial(prepare_case, plan=plan, verify=verify),
        waiting,
        processes or default_processes(_BYTES_PER_VALUE * largest),
        run,
    ):
        if outcome.kind == "ok":
            written += bool(outcome.value)
        else:
            failed[outcome.case_id] = str(outcome.error)
    keys = {work.id: work.key for work in works if work.id not in failed}
    if not keys:
        raise InputError(
            f"{manifest.name}: no case could be prepared; the first reason: {next(iter(failed.values()), '')}"
        )
    write_json(output / "index.json", index_content(keys, report.checks.bad_cases, report.previous))
    _remove_others(output, keys)
    return replace(report, keys=keys, written=written, failed=failed)


def _remove_others(output: Path, keys: Mapping[str, str]) -> None:
    """Removes the files of cases and versions that the index no longer names."""
    named = {case_path(output, case_id, key).name for case_id, key in keys.items()}
    for file in (output / "cases").iterdir():
        if file.name not in named and not file.name.startswith("."):
            file.unlink(missing_ok=True)
