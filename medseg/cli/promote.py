"""``medseg promote``: the alias ``champion`` of a registered model moves to a version that a paired test finds better."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.cli.entry import Context, run_verb
from medseg.errors import EnvironmentFault, InputError, LockedError, UsageError
from medseg.tracking.address import TRACKING_NAME
from medseg.tracking.registry import CHAMPION, ModelName, RegisteredVersion, Registry
from medseg.tracking.run import SCORE_FILES

DECISION_TAG = "medseg.promotion"
"""Of a registered version: what was decided about it last, and why."""
_REFUSED = 3
_SEND_SECONDS = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Promotes a version; 0 when it is the champion afterwards, 3 when it is not shown to be better."""
    purpose = (
        "Make a registered version the champion if it is better than the champion on the same cases (paired test, 5 %). "
        "Where there is no champion yet, it becomes that."
    )
    return run_verb("promote", argv, body=_promote, add_arguments=_arguments, description=purpose, needs_config=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="registered model, or models:/NAME/VERSION")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="model folder in --work; registered first if it is not"
    )
    parser.add_argument(
        "--scores", type=Path, metavar="DIR", help="with --model: folder of its scores [found by its runs]"
    )
    parser.add_argument("--on", metavar="SET", help="set of cases to compare on [the one that both were scored on]")
    parser.add_argument("--metric", default="dice", metavar="NAME", help="what is compared [%(default)s]")
    parser.add_argument("--tracker", metavar="URI", help="MLflow [MLFLOW_TRACKING_URI, else that of --work]")


def _promote(context: Context) -> int:
    from medseg.tracking.address import mlflow_is_installed, store_address
    from medseg.tracking.process import send_now, set_environment

    args = context.args
    if args.scores and not args.model:
        raise UsageError("promote: --scores is given without --model, expected both; name the model folder too")
    if not mlflow_is_installed():
        raise EnvironmentFault("promote: needs mlflow, which is not installed; pip install mlflow")
    wanted = _wanted(args.name)
    set_environment()
    if args.tracker:
        os.environ["MLFLOW_TRACKING_URI"] = args.tracker
    address = store_address(context.work)
    if args.model:
        sha256 = _register(context, wanted.name)
    if (context.work / TRACKING_NAME).is_dir():
        send_now(context.work, wait_seconds=_SEND_SECONDS)
    registry = Registry(address, work=context.work)
    version = registry.find_model(wanted.name, sha256) if args.model else registry.get(wanted)
    if version is None:
        raise EnvironmentFault(f"{wanted.name}: the model is not registered yet; medseg sync, then promote again")
    return _decide(registry, version, context.args)


def _wanted(text: str) -> ModelName:
    from medseg.tracking.store import CANDIDATE

    return ModelName.parse(text if text.startswith("models:") else f"models:/{text}@{CANDIDATE}")


def _register(context: Context, name: str) -> str:
    """Records a model folder, and its scores where they are given, as a run of the tracker; returns its checksum."""
    from medseg.config.sections import TrackingSection
    from medseg.durable import sha256_file
    from medseg.inference.model import model_json
    from medseg.tracking.tracker import open_tracker

    folder, scores = context.args.model, context.args.scores
    model_json(folder)
    if not folder.resolve().is_relative_to(context.work.resolve()):
        raise UsageError(f"--model: {folder.name} lies outside the work folder, expected one inside; see --work")
    sha256 = sha256_file(folder / "model.json")
    section = context.config.tracking if context.config else TrackingSection()
    with (
        open_tracker(section, work=context.work, experiment=context.config.name if context.config else name) as tracker,
        tracker.run("register", f"register {folder.parent.name}") as run,
    ):
        run.log_model(folder, registered_as=name)
        if scores is not None:
            if missing := [file for file in SCORE_FILES if not (scores / file).is_file()]:
                raise InputError(f"{scores.name}: holds no {missing[0]}, expected scores of medseg evaluate")
            run.log_scores(scores, model_sha256=sha256, of=scores.name, tags={})
    return sha256


def _decide(registry: Registry, version: RegisteredVersion, args: argparse.Namespace) -> int:
    champion = registry.find(ModelName(version.name, alias=CHAMPION))
    if champion is not None and champion.version == version.version:
        sys.stdout.write(f"{version}: is the champion already\n")
        return 0
    if champion is None:
        registry.name_champion(version)
        registry.tag(version, {DECISION_TAG: "promoted: there was no champion"})
        sys.stdout.write(f"{version}: is the champion now; there was none before\n")
        return 0
    verdict = _compare(registry, champion, version, args)
    if registry.find(ModelName(version.name, alias=CHAMPION)) != champion:
        raise LockedError(f"{version.name}: has another champion since a moment ago; promote again")
    words = f"against version {champion.version} on {verdict.of}: {verdict.reason}"
    if not verdict.better:
        registry.tag(version, {DECISION_TAG: f"refused {words}"})
        sys.stderr.write(f"{version}: is not promoted {words}\n")
        return _REFUSED
    registry.name_champion(version)
    registry.tag(version, {DECISION_TAG: f"promoted {words}"})
    registry.tag(champion, {DECISION_TAG: f"succeeded by version {version.version}"})
    sys.stdout.write(f"{version}: is the champion now, {words}\n")
    return 0


@dataclass(frozen=True)
class _Decision:
    better: bool
    reason: str
    of: str


def _compare(
    registry: Registry, champion: RegisteredVersion, version: RegisteredVersion, args: argparse.Namespace
) -> _Decision:
    from medseg.evaluation.comparing import judge

    runs = {one: registry.scores(one) for one in (champion, version)}
    of = _shared_set(runs, args.on)
    with tempfile.TemporaryDirectory(prefix="medseg-") as scratch:
        places = []
        for one, found in runs.items():
            folder = Path(scratch) / str(one.version)
            folder.mkdir()
            places.append(registry.fetch_scores(one, found[of], folder))
        verdict = judge(*places, metric=args.metric)
    return _Decision(verdict.better, verdict.reason, of)


def _shared_set(runs: Mapping[RegisteredVersion, Mapping[str, str]], asked: str | None) -> str:
    """The set of cases that all versions were scored on.

    Raises:
        InputError: there is none, or not the one asked for.
        UsageError: there are several and none was asked for.
    """
    for version, found in runs.items():
        if not found or (asked is not None and asked not in found):
            of = f" on {asked}" if asked else ""
            raise InputError(
                f"{version}: has no scores{of}, expected some to compare by; run medseg infer and medseg evaluate with it"
            )
    shared = sorted(set.intersection(*(set(found) for found in runs.values())))
    if asked is not None:
        return asked
    if not shared:
        known = "; ".join(f"version {version.version}: {', '.join(sorted(found))}" for version, found in runs.items())
        raise InputError(
            f"promote: no set of cases was scored with both ({known}); run medseg evaluate with the same set"
        )
    if len(shared) > 1:
        raise UsageError(f"promote: both have scores on {', '.join(shared)}; choose one with --on SET")
    return shared[0]
