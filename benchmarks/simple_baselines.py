"""Is a trained model better than no model? Baselines of one experiment, beside the model's own scores.

    python benchmarks/simple_baselines.py --config configs/sarcoma_pet.yaml --data-root DATA [--work work/sarcoma_pet]

Chosen on the training cases of the config's fold, scored on its validation cases, for each class by itself:

- threshold: voxels at or above (or below) one grey value. Tried in every channel on the values as read (SUV for PET),
  on each scan's z-scores and on each scan's ranks (share of its voxels that are darker); the best in mean Dice on the
  training cases is the baseline. A band of grey values, closed on both sides, is tried the same way.
- constant location: the place where the class most often lies, in relative coordinates of the RAS-oriented scan, cut at
  the share of cases that is best on the training cases (each judged by the map of all others).

The model's scores are those that `medseg evaluate` left in the work folder. Prints the tables and writes them to
benchmarks/results/baselines_<name>.md. Nothing is written into the work folder.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg.config import Config, load_config
from medseg.durable import read_json, write_text
from medseg.errors import GeometryError, MedsegError, UsageError
from medseg.evaluation.baselines import Band, BandSearch, LocationMap, Sides, candidate_edges
from medseg.evaluation.overlap import count_overlap, dice
from medseg.imaging import IGNORE, apply_axes, grid_difference, read_label_map, to_classes
from medseg.inference.runs import run_name
from medseg.manifest import Case, Manifest, load_manifest, resolve
from medseg.preparation.case import axis_change, expand_channels, load_case
from medseg.preparation.normalisation import normalise
from medseg.preparation.plan import ChannelPlan
from medseg.tracking.privacy import scrub
from medseg.tracking.record import code_commit, versions

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
# Of all voxels of a case, and of a class's, for the choice of values to try; every voxel counts in the search itself.
_SAMPLED = 20_000
_LEVELS = np.linspace(0, 1, 201)


# --- cases --------------------------------------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """A case: ``image`` (C, X, Y, Z) and ``classes`` (X, Y, Z), 255 where nobody labelled, axes as the config asks."""

    id: str
    image: FloatArray
    classes: npt.NDArray[np.uint8]

    @property
    def known(self) -> BoolArray:
        mask: BoolArray = self.classes != IGNORE
        return mask


@dataclass(frozen=True, kw_only=True)
class Experiment:
    config: Config
    manifest: Manifest
    data_root: Path
    fold: int

    @property
    def channel_names(self) -> tuple[str, ...]:
        return tuple(channel.name for channel in expand_channels(self.manifest.channels))

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names[1:]

    def cases(self) -> tuple[list[Case], list[Case]]:
        """(training, validation) cases that have a label."""
        training, validation = ([c for c in part if c.labels] for part in self.manifest.fold_cases(self.fold))
        if not training or not validation:
            raise UsageError(
                f"data.fold: {self.fold} has {len(training)} training and {len(validation)} validation cases with labels, "
                "expected some of both; choose another fold"
            )
        return training, validation

    def read(self, cases: Sequence[Case], purpose: str) -> Iterator[Labelled]:
        for number, case in enumerate(cases, start=1):
            if number % 25 == 0 or number == len(cases):
                print(f"{purpose}: {number} of {len(cases)} cases", file=sys.stderr, flush=True)
            yield self._read(case)

    def _read(self, case: Case) -> Labelled:
        paths = resolve(self.manifest, case, self.data_root)
        volume = load_case(paths.images, expand_channels(self.manifest.channels))
        labels = read_label_map(paths.labels[0])
        if difference := grid_difference(volume.shape, volume.affine, labels.shape, labels.affine):
            raise GeometryError(f"{case.id}: scan and label map lie on different grids ({difference}), expected one")
        classes = to_classes(labels, self.manifest.labels, ignore=self.manifest.ignore, name=case.id)
        picture = volume.shape[2] == 1
        change = axis_change(volume.affine, orientation=self.config.prepare.orientation, picture=picture)
        return Labelled(case.id, apply_axes(volume.array, change), apply_axes(classes, change))


# --- views: what a threshold may look at ----------------------------------------------------------------------------------


def _raw(values: FloatArray) -> FloatArray:
    return values


def _zscores(values: FloatArray) -> FloatArray:
    copy = values.copy()
    normalise(copy[None], [ChannelPlan(name="any", scheme="zscore")], None)
    return copy


def _ranks(values: FloatArray) -> FloatArray:
    """Share of the scan's voxels that are darker, 0 to 1; equal voxels have equal ranks."""
    ranks: FloatArray = (np.searchsorted(np.sort(values, axis=None), values) / values.size).astype(np.float32)
    return ranks


VIEWS: dict[str, Callable[[FloatArray], FloatArray]] = {"as read": _raw, "z-score": _zscores, "rank": _ranks}


class View(NamedTuple):
    channel: int
    name: str

    def of(self, case: Labelled) -> FloatArray:
        return VIEWS[self.name](case.image[self.channel])


# --- rules: what is chosen on training cases ------------------------------------------------------------------------------


@dataclass
class Rule:
    """One way to mark a class without a model, its mean Dice on training cases, and its Dice case by case."""

    kind: str
    what: str
    training_dice: float
    mask: Callable[[Labelled], BoolArray]
    scores: dict[str, float] = field(default_factory=dict)


def choose_rules(experiment: Experiment, training: Sequence[Case]) -> dict[str, list[Rule]]:
    """Class name to every rule that was tried, each at its best setting."""
    views = [View(c, name) for c in range(len(experiment.channel_names)) for name in VIEWS]
    classes = dict(enumerate(experiment.class_names, start=1))
    places = {index: LocationMap() for index in classes}
    edges = _edges(experiment, training, views, places)
    bands = {key: BandSearch(found) for key, found in edges.items()}
    levels = {index: BandSearch(_LEVELS) for index in classes}
    for case in experiment.read(training, "choosing"):
        known = case.known
        for view in views:
            values = view.of(case)[known]
            for index in classes:
                bands[view, index].add(values, case.classes[known] == index)
        for index, search in levels.items():
            mask = case.classes == index
            place = places[index].without(mask) if len(training) > 1 else places[index].on(mask.shape)
            search.add(place[known], mask[known])
    return {
        name: [
            *(_band_rule(sides, view, bands[view, i], experiment) for sides in ("threshold", "band") for view in views),
            _place_rule(levels[i], places[i]),
        ]
        for i, name in classes.items()
    }


def _edges(
    experiment: Experiment, training: Sequence[Case], views: Sequence[View], places: Mapping[int, LocationMap]
) -> dict[tuple[View, int], FloatArray]:
    """Values worth trying for each view and class; fills ``places`` on the way."""
    everywhere: dict[View, list[FloatArray]] = {view: [] for view in views}
    inside: dict[tuple[View, int], list[FloatArray]] = {(view, index): [] for view in views for index in places}
    for case in experiment.read(training, "looking"):
        for index, place in places.items():
            place.add(case.classes == index)
        for view in views:
            values = view.of(case)
            everywhere[view].append(_sample(values[case.known]))
            for index in places:
                inside[view, index].append(_sample(values[case.classes == index]))
    return {
        (view, index): candidate_edges(np.concatenate(everywhere[view]), np.concatenate(found))
        for (view, index), found in inside.items()
    }


def _sample(values: FloatArray) -> FloatArray:
    return values[:: max(1, math.ceil(values.size / _SAMPLED))]


def _band_rule(sides: Sides, view: View, search: BandSearch, experiment: Experiment) -> Rule:
    band, score = search.best(sides)
    channel = experiment.manifest.channels[0] if len(experiment.channel_names) == 1 else None
    unit = f" {channel.unit}" if channel and channel.unit and view.name == "as read" else ""
    what = f"{experiment.channel_names[view.channel]} {view.name} {_words(band)}{unit}"
    return Rule(sides, what, score, lambda case: band.mask(view.of(case)))


def _words(band: Band) -> str:
    if math.isinf(band.low):
        return f"< {band.high:.4g}"
    return f">= {band.low:.4g}" if math.isinf(band.high) else f"in [{band.low:.4g}, {band.high:.4g})"


def _place_rule(search: BandSearch, place: LocationMap) -> Rule:
    band, score = search.best("above")
    what = "everywhere" if math.isinf(band.low) else f"where at least {band.low:.1%} of the training cases have it"
    return Rule("location", what, score, lambda case: band.mask(place.on(case.classes.shape)))


def score_rules(rules: Mapping[str, Sequence[Rule]], experiment: Experiment, validation: Sequence[Case]) -> None:
    """Fills every rule's scores with its Dice on the validation cases; an undefined one (both empty) is left out."""
    for case in experiment.read(validation, "scoring"):
        known = case.known
        for index, name in enumerate(experiment.class_names, start=1):
            truth = case.classes == index
            for rule in rules[name]:
                value = dice(count_overlap(rule.mask(case) & known, truth))
                if not math.isnan(value):
                    rule.scores[case.id] = value


# --- the model ------------------------------------------------------------------------------------------------------------


class ModelScores(NamedTuple):
    """Class name to mean Dice, and to Dice case by case; and what a reader should know."""

    mean: dict[str, float]
    by_case: dict[str, dict[str, float]]
    note: str


def model_scores(folder: Path, validation: Sequence[Case]) -> ModelScores | None:
    """What ``medseg evaluate`` wrote into ``folder``; None where it wrote nothing."""
    if not (folder / "metrics.json").is_file():
        return None
    metrics = read_json(folder / "metrics.json")
    by_case: dict[str, dict[str, float]] = {name: {} for name in metrics["classes"]}
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            by_case[row["class"]][row["case"]] = float(row["dice"] or "nan")
    mean = {name: found["metrics"]["dice"]["mean"] for name, found in metrics["classes"].items()}
    return ModelScores(
        {k: math.nan if v is None else v for k, v in mean.items()}, by_case, _note(metrics, by_case, validation)
    )


def _note(metrics: dict[str, Any], by_case: Mapping[str, Mapping[str, float]], validation: Sequence[Case]) -> str:
    scored = {case for found in by_case.values() for case in found}
    same = "the same" if scored == {case.id for case in validation} else "NOT the same"
    policy, predictions = metrics["definitions"]["empty_masks"]["policy"], metrics["identity"]["predictions_sha256"]
    return (
        f"The model's scores are of {len(scored)} of {metrics['cases']['expected']} cases, {same} as the baselines'; "
        f"empty masks: {policy}; predictions sha256 {predictions[:16]}."
    )


# --- tables ---------------------------------------------------------------------------------------------------------------


TITLES = {"threshold": "threshold", "band": "band of grey values", "location": "constant location"}


def best_of(rules: Sequence[Rule], kind: str) -> Rule:
    """The rule of a kind that is best on the training cases."""
    return max((rule for rule in rules if rule.kind == kind), key=lambda rule: rule.training_dice)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def main_table(rules: Mapping[str, Sequence[Rule]], model: ModelScores | None, cases: int) -> list[str]:
    names = list(rules)
    rows: list[tuple[str, list[float], int]] = []
    if model is not None:
        scored = len({case for found in model.by_case.values() for case in found})
        rows.append(("the model", [model.mean.get(name, math.nan) for name in names], scored))
    for kind, title in TITLES.items():
        means = [_mean(list(best_of(rules[name], kind).scores.values())) for name in names]
        rows.append((f"best {title}" if kind != "location" else title, means, cases))
    return [
        f"| Dice on validation cases | {' | '.join(names)} | mean | cases |",
        "| --- " + "| ---: " * (len(names) + 2) + "|",
        *(
            f"| {title} | {' | '.join(f'{v:.4f}' for v in means)} | {_mean(means):.4f} | {n} |"
            for title, means, n in rows
        ),
    ]


def paired_lines(rules: Mapping[str, Sequence[Rule]], model: ModelScores) -> list[str]:
    """In how many cases the model is ahead."""
    lines = []
    for name, found in rules.items():
        for kind, title in TITLES.items():
            rule, own = best_of(found, kind), model.by_case.get(name, {})
            both = sorted(set(rule.scores) & {case for case, value in own.items() if not math.isnan(value)})
            ahead = sum(own[case] > rule.scores[case] for case in both)
            lines.append(f"- {name}: the model is ahead of the {title} in {ahead} of {len(both)} cases")
    return lines


def tried_table(rules: Mapping[str, Sequence[Rule]]) -> list[str]:
    """Every rule at its best setting, those that the first table shows in bold."""
    lines = [
        "| class | rule | setting | training Dice | validation Dice | cases |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for name, found in rules.items():
        for rule in found:
            mark = "**" if rule is best_of(found, rule.kind) else ""
            value = _mean(list(rule.scores.values()))
            lines.append(
                f"| {name} | {mark}{rule.kind}{mark} | {rule.what} | {rule.training_dice:.4f} | {value:.4f} | "
                f"{len(rule.scores)} |"
            )
    return lines


def report(
    experiment: Experiment,
    rules: Mapping[str, Sequence[Rule]],
    model: ModelScores | None,
    counts: tuple[int, int],
    seconds: float,
) -> str:
    training, validation = counts
    lines = [
        f"# Baselines: {experiment.config.name}, fold {experiment.fold}",
        "",
        f"- date: {dt.datetime.now(dt.UTC):%Y-%m-%d}",
        f"- machine: {machine()}",
        f"- command: `{command()}`",
        f"- versions: {', '.join(f'{k} {v}' for k, v in _versions().items())}",
        f"- data: {experiment.manifest.name}, manifest sha256 {experiment.manifest.sha256[:16]}",
        f"- split: fold {experiment.fold} of the manifest; {training} training cases, {validation} validation cases",
        f"- took {seconds:.0f} s",
        "",
        *main_table(rules, model, validation),
        "",
        model.note if model else "The model has no scores yet: run train, infer and evaluate, then this again.",
        *(["", *paired_lines(rules, model)] if model else []),
        "",
        "Every baseline is chosen on the training cases alone, per class, by mean Dice. What was tried, each at its best",
        "setting (bold: best on the training cases, so the one in the first table):",
        "",
        *tried_table(rules),
        "",
    ]
    return "\n".join(lines)


def machine() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    models = {line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    name = ", ".join(sorted(models)) or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {memory / 2**30:.0f} GiB, {platform.system()}"


def command() -> str:
    return scrub(shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]))


def _versions() -> dict[str, str]:
    wanted = ("python", "medseg", "numpy", "scipy", "nibabel", "pillow")
    found: dict[str, Any] = {name: version for name, version in versions().items() if name in wanted}
    return {**found, "commit": (code_commit() or "unknown")[:12]}


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    config = load_config(args.config, args.overrides)
    if config.data.fold is None:
        raise UsageError("data.fold: is null, so no case is held out; expected a fold, e.g. --set data.fold=0")
    manifest = load_manifest(args.config.parent / config.data.manifest)
    experiment = Experiment(
        config=config, manifest=manifest, data_root=args.data_root or manifest.path.parent, fold=config.data.fold
    )
    training, validation = experiment.cases()
    rules = choose_rules(experiment, training)
    score_rules(rules, experiment, validation)
    folder = args.scores or (args.work or Path("work") / config.name) / "scores" / run_name(config.data.fold)
    model = model_scores(folder, validation)
    text = report(experiment, rules, model, (len(training), len(validation)), time.monotonic() - started)
    print(text)
    output = args.output or Path(__file__).parent / "results"
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / f"baselines_{config.name}.md", text)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="overrides")
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="where the manifest's paths start [its own folder]"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="the experiment's folder [work/<config name>]")
    parser.add_argument("--scores", type=Path, metavar="DIR", help="the model's scores [<work>/scores/fold_<k>]")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the table [benchmarks/results]")
    try:
        return run(parser.parse_args())
    except MedsegError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
