"""The search in its folder: which candidates, what each scored in each round, and the winner as a config.

``<folder>`` holds ``search.json`` (what the search is a function of), ``rounds/<n>/candidate_<k>/`` (a training run each),
``results.json`` (scores so far), and at the end ``winner.yaml`` and ``report.md``. Candidates are scored on training patients
set aside for it; the fold's held-out cases are never looked at.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.config import Config
from medseg.config.loading import config_text
from medseg.config.train_sections import BudgetSection
from medseg.durable import read_json, sha256_json, write_json, write_text
from medseg.errors import ChangedError, EnvironmentFault, InputError, MedsegError
from medseg.manifest import Manifest
from medseg.preparation.store import PreparedData
from medseg.search.halving import DEFAULT, Round, promoted, winner
from medseg.training.inputs import TrainingInputs, inner_split, training_inputs
from medseg.training.stage import run_training
from medseg.training.state import history_curves

if TYPE_CHECKING:
    import torch

    from medseg.training.loop import EpochResult

_LOG = logging.getLogger(__name__)
SEARCH_FORMAT = 1
_CURVE = "validation Dice "


@dataclass(frozen=True, eq=False, kw_only=True)
class Search:
    """What a search is a function of.

    Attributes:
        folder: where it writes.
        config_path: the config's file.
        configs: each candidate's config, the default first, with the experiment's own budget.
        values: what each candidate changes, key to value.
        rounds: sizes and minutes.
        manifest, prepared: the data.
        inner_share: share of the training patients that candidates are scored on.
    """

    folder: Path
    config_path: Path
    configs: Sequence[Config]
    values: Sequence[Mapping[str, Any]]
    rounds: Sequence[Round]
    manifest: Manifest
    prepared: PreparedData
    inner_share: float = 0.2

    def identity(self) -> dict[str, Any]:
        """What may not change between two starts of one search."""
        return {
            "format": SEARCH_FORMAT,
            "config_sha256": sha256_json(self.configs[DEFAULT].plain()),
            "candidates": [dict(values) for values in self.values],
            "rounds": [[one.candidates, one.minutes] for one in self.rounds],
            "prepared_sha256": self.prepared.sha256,
            "inner_share": self.inner_share,
        }

    def run_folder(self, number: int, candidate: int) -> Path:
        """Where a candidate of a round trains."""
        return self.folder / "rounds" / str(number) / f"candidate_{candidate:02d}"

    def inputs(self, candidate: int, minutes: float) -> TrainingInputs:
        """What a candidate is trained on: the fold's training cases but the inner ones, which it is scored on at its end."""
        config = self.configs[candidate]
        whole = training_inputs(config, self.manifest, self.prepared, config_folder=self.config_path.parent)
        by_id = {case.id: case for case in self.manifest.training}
        # Of the default's seed, so that all are scored on the same patients.
        kept, inner = inner_split(
            [by_id[case] for case in whole.training], share=self.inner_share, seed=self.configs[DEFAULT].seed
        )
        section = config.train.model_copy(
            update={
                "budget": BudgetSection(minutes=minutes, steps_per_epoch=config.train.budget.steps_per_epoch),
                "validation": config.train.validation.model_copy(update={"every_epochs": 10**9, "cases": len(inner)}),
            }
        )
        return replace(
            whole,
            training=tuple(case.id for case in kept),
            validation=tuple(case.id for case in inner),
            section=section,
            config_text=config_text(config.model_copy(update={"train": section})),
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate in one round, before it has trained: ``name`` for people, ``values`` what it changes."""

    round_number: int
    candidate: int
    minutes: float
    values: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """Such as ``round 1 candidate 03``."""
        return f"round {self.round_number} candidate {self.candidate:02d}"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What became of a trial.

    Attributes:
        trial: which.
        dice: mean over classes and inner cases; None where it failed.
        failure: one line, None where it did not fail.
        kept: it was finished by an earlier start.
    """

    trial: Trial
    dice: float | None
    failure: str | None = None
    kept: bool = False


Observer = Callable[["EpochResult"], None]
Watch = Callable[[Trial], AbstractContextManager[Observer]]


def _unwatched(_trial: Trial) -> AbstractContextManager[Observer]:
    return nullcontext(lambda _epoch: None)


def run_search(
    search: Search,
    *,
    device: torch.device,
    allow_changed: bool = False,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch = _unwatched,
) -> Iterator[TrialResult]:
    """Trains the candidates round by round and writes the winner; the caller holds the folder's lock.

    A search that was stopped goes on with the trial it was at. After a stop nothing more is yielded, and there is no
    ``winner.yaml``.

    Args:
        search: what to search.
        device: where to train.
        allow_changed: go on although the search differs from what it began with; scores so far are kept.
        stop: asked after each step.
        watch: told of each trial that trains now; gives what is told its epochs.

    Yields:
        A result per trial, in order, earlier ones too.

    Raises:
        ChangedError: the search differs from what lies in the folder.
        InputError: the default failed, so there is nothing to compare with.
    """
    _begin(search, allow_changed=allow_changed)
    held = _results(search.folder)
    members: tuple[int, ...] = tuple(range(search.rounds[0].candidates))
    scores: dict[int, float | None] = {}
    for number, one in enumerate(search.rounds, start=1):
        members = members if number == 1 else promoted(scores, one.candidates)
        scores = {}
        for candidate in members:
            trial = Trial(
                round_number=number, candidate=candidate, minutes=one.minutes, values=search.values[candidate],
                folder=search.run_folder(number, candidate),
            )  # fmt: skip
            result = _kept(trial, held) or _tried(search, trial, device=device, stop=stop, watch=watch)
            if result is None:
                return
            if candidate == DEFAULT and result.dice is None:
                raise InputError(f"tune: the config as it is can't be trained ({result.failure}); correct it first")
            scores[candidate] = result.dice
            held[trial.name] = {"dice": result.dice, "failure": result.failure}
            write_json(search.folder / "results.json", {"format": SEARCH_FORMAT, "trials": held})
            yield result
    _conclude(search, held, winner(scores))


def _begin(search: Search, *, allow_changed: bool) -> None:
    path, identity = search.folder / "search.json", search.identity()
    if path.exists():
        before = read_json(path)
        changed = [
            f"tune: {key} is not what the search began with" for key in identity if identity[key] != before.get(key)
        ]
        if changed and not allow_changed:
            raise ChangedError([*changed, "tune: go on with --allow-changed, or start anew with --fresh"])
    write_json(path, identity)


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "results.json"
    trials: dict[str, dict[str, Any]] = read_json(path)["trials"] if path.exists() else {}
    return trials


def _kept(trial: Trial, held: Mapping[str, Mapping[str, Any]]) -> TrialResult | None:
    known = held.get(trial.name)
    return None if known is None else TrialResult(trial=trial, dice=known["dice"], failure=known["failure"], kept=True)


def _tried(
    search: Search, trial: Trial, *, device: torch.device, stop: Callable[[], bool], watch: Watch
) -> TrialResult | None:
    """Trains one candidate; None where it was stopped."""
    started = time.monotonic()
    try:
        with watch(trial) as observe:
            inputs = search.inputs(trial.candidate, trial.minutes)
            for epoch in run_training(
                inputs, trial.folder, device=device, elapsed_seconds=lambda: time.monotonic() - started, stop=stop
            ):
                observe(epoch)
    except EnvironmentFault:
        raise  # a full disk would fail every candidate, and judge none
    except (MedsegError, RuntimeError, ValueError) as error:
        # A candidate may ask for what can't be built or does not fit into memory; that is its result.
        sentence = " ".join(str(error).split())[:300] if isinstance(error, MedsegError) else type(error).__name__
        _LOG.warning("%s: failed: %s", trial.name, sentence)
        _LOG.debug("%s: where it failed", trial.name, exc_info=error)
        return TrialResult(trial=trial, dice=None, failure=sentence)
    if not (trial.folder / "model" / "model.json").exists():
        return None
    return TrialResult(trial=trial, dice=_dice(trial.folder))


def _dice(folder: Path) -> float:
    """Mean over classes of the last validation's Dice."""
    curves = history_curves(folder / "state")
    last = [points[-1][1] for name, points in curves.items() if name.startswith(_CURVE)]
    return statistics.mean(last) if last else 0.0


def _conclude(search: Search, held: Mapping[str, Mapping[str, Any]], best: int) -> None:
    config = _portable(search.configs[best], search.config_path.parent, search.folder)
    table = _table(search, held)
    last = len(search.rounds)
    score, default = (held[f"round {last} candidate {k:02d}"]["dice"] for k in (best, DEFAULT))
    verdict = conclusion(best, score, default)
    head = [f"medseg train --config {search.folder.name}/winner.yaml", "", verdict, "", *table]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head)
    write_text(search.folder / "winner.yaml", comment + config_text(config))
    write_text(search.folder / "report.md", "\n".join(["# Search", "", verdict, "", *table, "", _HOW, ""]))


_HOW = (
    "Dice is the mean over classes and over training patients set aside (the inner split), after as many minutes as the "
    "round gave. The best of several such scores is too high by its choice; report neither of them. Train the winner and the "
    "default on the folds and compare their out-of-fold scores: only those say whether the winner wins."
)


def conclusion(best: int, score: float, default: float) -> str:
    """One sentence on what won and by how much, on the inner split."""
    if best == DEFAULT:
        return f"No candidate was better than the config as it is (inner Dice {default:.4f}): keep it."
    return (
        f"Candidate {best:02d} has inner Dice {score:.4f}, the config as it is {default:.4f} ({score - default:+.4f})."
    )


def _table(search: Search, held: Mapping[str, Mapping[str, Any]]) -> list[str]:
    keys = sorted({key for values in search.values for key in values})
    lines = [f"| round | minutes each | candidate | Dice | {' | '.join(keys)} |", "|" + " --- |" * (4 + len(keys))]
    for number, one in enumerate(search.rounds, start=1):
        for k, values in enumerate(search.values):
            found = held.get(f"round {number} candidate {k:02d}")
            if found is not None:
                dice = f"{found['dice']:.4f}" if found["dice"] is not None else f"failed: {found['failure']}"
                cells = [str(values.get(key, "as it is")) for key in keys]
                name = "the default" if k == DEFAULT else f"{k:02d}"
                lines.append(f"| {number} | {one.minutes:.2f} | {name} | {dice} | {' | '.join(cells)} |")
    return lines


def _portable(config: Config, old: Path, new: Path) -> Config:
    """The config as it reads from another folder: its relative paths lead to the same files."""

    def moved(path: str) -> str:
        return Path(os.path.relpath((old / path).resolve(), new.resolve())).as_posix()

    data = config.data.model_copy(update={"manifest": moved(config.data.manifest)})
    train = config.train
    if train.init_from is not None:
        train = train.model_copy(update={"init_from": moved(train.init_from)})
    return config.model_copy(update={"data": data, "train": train, "name": f"{config.name[:56]}-tuned"})
