"""Scoring many cases: what is done already is kept, what can't be scored is named, the rest is done."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from medseg.durable import FolderLock, read_json, remove_stale_temporaries, sha256_json, write_json
from medseg.errors import InputError, ScanError
from medseg.evaluation.aggregate import ClassSummary, summarise
from medseg.evaluation.case import (
    CaseScores,
    CaseTask,
    ClassScores,
    FileState,
    file_stamp,
    needs_probabilities,
    score_case,
)
from medseg.evaluation.error_maps import write_beside_scores
from medseg.evaluation.experiment import CaseSet
from medseg.evaluation.identity import settings_sha256
from medseg.evaluation.matching import CasePaths
from medseg.evaluation.probabilities import find_probabilities
from medseg.evaluation.protocol import Protocol
from medseg.evaluation.raters import RatedPair, consensus_pairs, human_band, mean_scores, rated_pairs
from medseg.evaluation.registry import CASE_METRICS
from medseg.evaluation.report import Scores, write_scores
from medseg.imaging.parts import sha256_of_parts
from medseg.runner.pool import Outcome, RunCases, run_cases
from medseg.runner.progress import CaseProgress
from medseg.runner.resources import available_cores, default_processes

logger = logging.getLogger(__name__)

# Two label maps of 512 x 512 x 600 as read and as classes, and the crops of the largest class.
_MEMORY_PER_CASE_BYTES = 1536 * 1024**2
# Below this many cases, starting workers costs more than they save.
_FEW_CASES = 4
_CASE_FORMAT = 2
_CASE_NAMES = tuple(metric.name for metric in CASE_METRICS)

Rows = tuple[ClassScores, ...]
Labelled = tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class _Files:
    """A case's two label maps, and the probability map where there is one that is needed."""

    prediction: FileState
    reference: FileState
    probabilities: FileState | None = None

    @property
    def pair_sha256(self) -> tuple[str, str]:
        """Of prediction and reference."""
        return self.prediction.sha256, self.reference.sha256

    @property
    def sha256(self) -> list[str]:
        """Of each file that is there."""
        found = (self.prediction, self.reference, self.probabilities)
        return [state.sha256 for state in found if state is not None]


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """What a run of the stage did.

    Attributes:
        scores: of all cases, from this run or an earlier one.
        scored: cases whose label maps were read now.
        kept: cases whose rows were still good; their files were hashed, not decoded.
    """

    scores: Scores
    scored: int
    kept: int

    @property
    def exit_code(self) -> int:
        """The verb's exit code: 0; 4 where a case is missing, left over or failed; 3 where none could be scored."""
        if not self.scores.rows:
            return 3
        return 0 if self.scores.complete else 4

    @property
    def faults(self) -> tuple[str, ...]:
        """One line per case that is missing, left over or failed."""
        return (
            *(f"{case}: has no prediction, expected one for every reference" for case in sorted(self.scores.missing)),
            *(f"{case}: has a prediction but no reference, expected both" for case in sorted(self.scores.extra)),
            *(reason for _, reason in sorted(self.scores.failed.items())),
        )


def run_evaluate(
    cases: CaseSet,
    *,
    output: Path,
    processes: int | None = None,
    run: RunCases | None = None,
    error_maps: bool = False,
) -> EvaluateReport:
    """Scores every case and writes ``cases.csv``, ``metrics.json`` and ``cases/<case>.json`` into ``output``.

    A case's rows are stored with a key over both files' content, the settings and the code; where it agrees they are kept
    and no label map is read. The files are equal byte for byte, however often the run was stopped and resumed.

    Args:
        cases: pairs of paths and how to score them; a missing side is reported, never dropped.
        output: folder of this set's scores.
        processes: at once; None chooses by cores and memory.
        run: does the cases, as a cluster does; None does them in processes of this machine.
        error_maps: write ``errors/<case>_<class>.nii.gz`` as well. Where the predictions have entropy maps beside them,
            ``uncertainty.csv`` is written in any case.

    Raises:
        LockedError: another process writes ``output``.
        EnvironmentFault: ``output`` can't be written.
    """
    protocol = cases.protocol
    with FolderLock(output):
        remove_stale_temporaries(output)
        pairs = cases.pairs
        if cases.raters in ("majority", "staple"):
            pairs = consensus_pairs(pairs, protocol, cases.raters, output / "references")
        found, band = _score_pairs(pairs, protocol, output / "cases", processes, run), {}
        if rated := rated_pairs(pairs):
            judged = _score_pairs([one.paths for one in rated], protocol, output / "raters", processes, run)
            names, patients = protocol.class_names, cases.patients
            band = human_band(rated, judged.rows, names, how=cases.raters, policy=protocol.policy, patients=patients)
            if cases.raters == "each":
                found = _each(found, rated, judged, protocol)
        rows = found.rows
        classes = summarise(rows, protocol.class_names, protocol.policy, cases.patients)
        scores = Scores(
            name=cases.name,
            rows=rows,
            classes=classes,
            missing=tuple(pair.case_id for pair in pairs if pair.prediction is None and pair.fault is None),
            extra=tuple(pair.case_id for pair in pairs if pair.reference is None and pair.fault is None),
            failed=found.failed,
            inputs={case_id: found.pair_sha256(case_id) for case_id in rows},
            protocol=protocol,
            notes=(
                *cases.notes,
                *_notes(protocol, [found.files[case_id] for case_id in rows]),
                *_absent_notes(classes),
            ),
            patients=cases.patients,
            groups=cases.groups,
            raters=band,
            whole={case_id: found.cases[case_id].values for case_id in rows},
        )
        write_scores(scores, output)
        write_beside_scores(pairs, scores.inputs, protocol=protocol, output=output, error_maps=error_maps)
    kept = len(found.kept & rows.keys())
    return EvaluateReport(scores=scores, scored=len(rows) - kept, kept=kept)


@dataclass(frozen=True)
class _Found:
    """What scoring pairs gave.

    Attributes:
        cases: their scores.
        failed: why others have none.
        files: those that could be hashed.
        kept: ids of scores that were there before.
        references: checksum over all references of a case that was scored against several.
    """

    cases: Mapping[str, CaseScores]
    failed: Mapping[str, str]
    files: Mapping[str, _Files]
    kept: frozenset[str]
    references: Mapping[str, str] = field(default_factory=dict)

    def pair_sha256(self, case_id: str) -> tuple[str, str]:
        """Of a case's mask and what it was scored against."""
        prediction, reference = self.files[case_id].pair_sha256
        return prediction, self.references.get(case_id, reference)

    @property
    def rows(self) -> dict[str, Rows]:
        """The rows alone."""
        return {case_id: case.rows for case_id, case in self.cases.items()}


def _each(found: _Found, rated: Sequence[RatedPair], judged: _Found, protocol: Protocol) -> _Found:
    """With the scores of each rated case replaced by the means over all of its references.

    A case that one of them could not be scored against fails: a mean over fewer would be another score.
    """
    names: dict[str, list[str]] = {}
    for one in rated:
        if not one.human and one.case_id in found.cases:
            names.setdefault(one.case_id, []).append(one.paths.case_id)
    cases, failed, references = dict(found.cases), dict(found.failed), {}
    for case_id, own in names.items():
        if reasons := [judged.failed[name] for name in own if name in judged.failed]:
            del cases[case_id]
            failed[case_id] = f"{case_id}: can't be scored against every reference ({reasons[0]})"
            continue
        cases[case_id] = mean_scores([judged.cases[name] for name in own], protocol.policy)
        references[case_id] = sha256_json([judged.files[name].reference.sha256 for name in own])
    return replace(found, cases=cases, failed=failed, references=references)


def _score_pairs(
    pairs: Sequence[CasePaths], protocol: Protocol, folder: Path, processes: int | None, run: RunCases | None
) -> _Found:
    """Scores the pairs whose rows are not in ``folder`` yet, and puts them there."""
    store = _RowStore(folder, settings_sha256(protocol), protocol.metrics)
    files, failed = _hash_all(pairs, probabilities=needs_probabilities(protocol.metrics))
    paths = {pair.case_id: pair for pair in pairs}
    stored = {case_id: store.read(case_id, files[case_id], paths[case_id].labelled) for case_id in files}
    done = {case_id: kept for case_id, kept in stored.items() if kept is not None}
    known = frozenset(done)
    waiting = {case_id: pair for case_id, pair in files.items() if case_id not in done}
    for outcome in _score_all(waiting, paths, protocol, processes, run, done=len(known)):
        if outcome.value is None:
            failed[outcome.case_id] = " ".join(str(outcome.error).split())
        else:
            store.write(outcome.case_id, files[outcome.case_id], paths[outcome.case_id].labelled, outcome.value)
            done[outcome.case_id] = outcome.value
    return _Found(cases=done, failed=failed, files=files, kept=known)


def _notes(protocol: Protocol, files: Sequence[_Files]) -> tuple[str, ...]:
    """What of the chosen metrics can't be told."""
    without = sum(own.probabilities is None for own in files)
    if not (needs_probabilities(protocol.metrics) and without):
        return ()
    note = (
        f"{without} of {len(files)} cases have no probability map: calibration and the lesions' confidence are undefined "
        "there; medseg infer --probabilities writes them"
    )
    logger.warning("%s", note)
    return (note,)


def _absent_notes(classes: Sequence[ClassSummary]) -> tuple[str, ...]:
    """Classes that no mask has: rightly so, or misspelt, for structures of unknown names are passed over."""
    names = [one.class_name for one in classes if 0 < one.counts["cases"] == one.counts["both_empty"]]
    if not names:
        return ()
    note = f"{', '.join(names)}: no prediction and no reference has a voxel of it, so it has no score; check name and values"
    logger.warning("%s", note)
    return (note,)


def _hash_all(cases: Sequence[CasePaths], *, probabilities: bool) -> tuple[dict[str, _Files], dict[str, str]]:
    """The files of every complete pair hashed, and why the others can't be."""
    failed = {case.case_id: case.fault for case in cases if case.fault is not None}
    pairs = [(c.case_id, c.prediction, c.reference) for c in cases if c.prediction and c.reference and not c.fault]
    maps = {case.case_id: case.mask_of or case.case_id for case in cases if not case.two_references}
    files: dict[str, _Files] = {}
    with ThreadPoolExecutor(available_cores()) as threads:  # hashing lets go of the interpreter's lock
        jobs = []
        for case_id, *pair in pairs:
            extra = find_probabilities(pair[0], maps[case_id]) if probabilities and case_id in maps else None
            jobs.append(
                (case_id, [threads.submit(_hashed, path, case_id) for path in (*pair, *([extra] if extra else []))])
            )
        for case_id, futures in jobs:
            try:
                prediction, reference, *more = (future.result() for future in futures)
                files[case_id] = _Files(
                    prediction=prediction, reference=reference, probabilities=more[0] if more else None
                )
            except ScanError as error:
                failed[case_id] = str(error)
    return files, failed


def _hashed(path: Path, case_id: str) -> FileState:
    if not path.is_file():
        raise ScanError(f"{case_id}: {path.name} is no file, expected a label map; check the path")
    try:
        stamp = file_stamp(path)
        # Absolute, for a worker of a cluster has another working folder.
        return FileState(path=path.absolute(), sha256=sha256_of_parts(path), stamp=stamp)
    except OSError as error:
        raise ScanError(f"{case_id}: {path.name} can't be read ({error.strerror}); check its permissions") from error


def _score_all(
    files: Mapping[str, _Files],
    paths: Mapping[str, CasePaths],
    protocol: Protocol,
    processes: int | None,
    run: RunCases | None,
    *,
    done: int,
) -> Iterator[Outcome[CaseScores]]:
    tasks = [
        (
            case_id,
            CaseTask(
                case_id=case_id,
                prediction=own.prediction,
                reference=own.reference,
                protocol=protocol,
                labelled=paths[case_id].labelled,
                probabilities=own.probabilities,
                two_references=paths[case_id].two_references,
            ),
        )
        for case_id, own in sorted(files.items())
    ]
    if processes is None:
        processes = 1 if len(tasks) < _FEW_CASES else default_processes(_MEMORY_PER_CASE_BYTES)
    with CaseProgress("evaluate", done + len(tasks), done=done) as progress:
        outcomes = run_cases(score_case, tasks, processes=processes) if run is None else run(score_case, tasks)
        for outcome in outcomes:
            progress.advance()
            yield outcome


class _RowStore:
    """One small JSON file per case, which says by its key what it was made of."""

    def __init__(self, folder: Path, settings: str, metrics: tuple[str, ...]) -> None:
        self._folder, self._settings, self._metrics = folder, settings, metrics
        remove_stale_temporaries(folder)

    def _path(self, case_id: str) -> Path:
        return self._folder / f"{case_id}.json"

    def _key(self, files: _Files, labelled: Labelled) -> str:
        partly = [] if labelled is None else [list(labelled)]
        return sha256_json([_CASE_FORMAT, self._settings, files.sha256, *partly])

    def write(self, case_id: str, files: _Files, labelled: Labelled, case: CaseScores) -> None:
        plain = {"rows": [asdict(row) for row in case.rows], "all_classes": dict(case.values)}
        content = {
            "format": _CASE_FORMAT,
            "key": self._key(files, labelled),
            **plain,
            "scores_sha256": sha256_json(plain),
        }
        write_json(self._path(case_id), content)

    def read(self, case_id: str, files: _Files, labelled: Labelled) -> CaseScores | None:
        """The case's scores, or None where there are none, or they are of something else or damaged."""
        try:
            content = read_json(self._path(case_id))
            plain = {name: content[name] for name in ("rows", "all_classes")}
            if content["key"] != self._key(files, labelled) or content["scores_sha256"] != sha256_json(plain):
                return None
            rows = tuple(ClassScores(**row) for row in plain["rows"])  # a wrong field is a TypeError
            if any(tuple(row.values) != self._metrics for row in rows) or tuple(plain["all_classes"]) != _CASE_NAMES:
                return None
            return CaseScores(rows=rows, values=plain["all_classes"])
        except (InputError, KeyError, TypeError, ValueError):
            return None
