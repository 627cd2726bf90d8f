"""``medseg init FOLDER``: looks at a data folder, writes a manifest and a commented config for it, and says what next."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.cli.config_template import commented_config
from medseg.cli.entry import Context, run_verb
from medseg.cli.manifest import label_values, with_found_labels
from medseg.durable import write_text
from medseg.errors import InputError, MedsegError, UsageError
from medseg.manifest import Manifest, load_manifest, save_manifest
from medseg.manifest.builders import (
    Built,
    build_from_bids,
    build_from_decathlon,
    build_from_dicom,
    build_from_folders,
    build_from_nnunet,
)
from medseg.manifest.builders.draft import LabelValues, list_scans
from medseg.manifest.folding import fold_manifest, keep_folds
from medseg.manifest.label_survey import LabelSurvey
from medseg.manifest.layouts import Kind, detect_layout, guess_channel, guess_patterns

_PLACEHOLDER: LabelValues = {"background": (0,), "foreground": (1,)}
_KINDS = {
    "decathlon": "a data set as the Medical Segmentation Decathlon lays it out",
    "nnunet": "a raw folder of nnU-Net",
    "bids": "a BIDS-like tree",
    "dicom": "a tree of DICOM series",
    "folders": "plain folders",
}
_NO_IMAGES = (
    "Here it is false because nothing is known of who may see these scans; set it to true once everybody "
    "who can open the tracker may see them."
)


@dataclass
class _Found:
    """What was seen and guessed, in the order it is told."""

    built: Built
    survey: LabelSurvey | None = None
    notes: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb; returns its exit code."""
    about = "Look at a data folder and write a manifest and a commented config for it."
    return run_verb("init", argv, body=_init, add_arguments=_arguments, description=about, needs_config=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the data; nothing is written there unless asked")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where to write both files [here]")
    parser.add_argument("--layout", choices=tuple(_KINDS), help="what the folder is [found by looking]")
    parser.add_argument(
        "--label-pattern", metavar="PATTERN", help="where labels of DICOM series are: 'masks/{id}.nii.gz'"
    )
    parser.add_argument("--name", metavar="NAME", help="name of the experiment and its files [the folder's]")
    parser.add_argument("--labels", type=label_values, metavar="A=1,B=2+3", help="class names with their values")
    parser.add_argument("--seed", type=int, default=12345, metavar="N", help="of the folds [12345]")
    parser.add_argument("--overwrite", action="store_true", help="replace both files; the folds there are stay")


def _init(context: Context) -> int:
    args = context.args
    kind: Kind = args.layout or detect_layout(args.folder)
    name = _experiment_name(args.name or args.folder.resolve().name)
    manifest_path, config_path = args.output / f"{name}.json", args.output / f"{name}.yaml"
    for path in (manifest_path, config_path):
        if path.exists() and not args.overwrite:
            raise UsageError(f"{path.name}: is there already; give --overwrite, another --name or another --output")
    found = _look(args.folder, kind, args.labels, args.label_pattern)
    manifest = found.built.manifest
    if not manifest.training:
        raise InputError(
            f"{args.folder.name}: no image has a label that its name tells; 'medseg manifest folders --label-pattern' "
            "says where labels are, and scans without labels need no manifest: 'medseg infer' takes the folder"
        )
    if manifest_path.exists():
        manifest = keep_folds(manifest, load_manifest(manifest_path))
    manifest = _folded(manifest, args.folder, args.seed, found)
    save_manifest(manifest, manifest_path)
    command = f"medseg prepare --config {shlex.quote(str(config_path))} --data-root {shlex.quote(str(args.folder))}"
    write_text(config_path, _config_text(name, manifest, command))
    _tell(kind, manifest, found, (manifest_path, config_path), command)
    return 0


def _experiment_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).lstrip("_-").lower()[:64]
    return name or "experiment"


def _look(root: Path, kind: Kind, labels: LabelValues | None, label_pattern: str | None) -> _Found:
    if kind == "decathlon":
        return _Found(build_from_decathlon(root))
    if kind == "nnunet":
        return _Found(build_from_nnunet(root, labels=labels))
    if kind == "bids":
        return _named(build_from_bids(root, label_values=labels or _lookup_or_placeholder(root)), root, labels)
    if kind == "dicom":
        values = labels or _PLACEHOLDER
        built = build_from_dicom(root, label_values=values, labels=label_pattern, skip_missing=True)
        return _named(built, root, labels)
    return _plain_folders(root, labels)


def _lookup_or_placeholder(root: Path) -> LabelValues | None:
    return None if any(root.rglob("*dseg.tsv")) else _PLACEHOLDER


def _named(built: Built, root: Path, labels: LabelValues | None) -> _Found:
    """Classes by the values found, where neither the user nor the data set named any."""
    if labels is not None or dict(built.manifest.labels) != dict(_PLACEHOLDER):
        return _Found(built)
    built, survey = with_found_labels(built, root)
    return _Found(built, survey)


def _plain_folders(root: Path, labels: LabelValues | None) -> _Found:
    guess = guess_patterns(list_scans(root))
    channels = guess.channels
    notes = [f"images are {guess.images}, labels are {guess.labels or 'none that their names tell'}"]
    if guess.others:
        notes.append(f"left out: {', '.join(guess.others[:6])}; 'medseg manifest folders' takes what you choose")
    built = build_from_folders(
        root,
        images=guess.images,
        labels=guess.labels,
        channels=channels or ("image",),
        label_values=labels or _PLACEHOLDER,
        skip_missing=True,
    )
    if not channels:
        name, how = _single_channel(root, guess.images, built.manifest)
        built = replace(
            built, manifest=replace(built.manifest, channels=(replace(built.manifest.channels[0], name=name),))
        )
        notes.append(f"the channel is taken for {name}, {how}; it decides the normalisation")
    found = _named(built, root, labels)
    found.notes = notes
    return found


def _single_channel(root: Path, pattern: str, manifest: Manifest) -> tuple[str, str]:
    """The channel of a one-image case by the words of its name, else by what one file holds."""
    named = guess_channel(pattern)
    if named:
        return named, "by the files' names"
    from medseg.imaging import read_header, read_volume

    path = root / (*manifest.training, *manifest.testing)[0].images[0]
    try:
        header = read_header(path)
        if header.planar:
            return (
                ("RGB", "as pictures have colours") if header.channels == 3 else ("grey", "as pictures have no colours")
            )
        lowest = float(read_volume(path).array.min())
    except MedsegError as error:
        return "image", f"as one file can't be read ({error})"
    if lowest <= -500:
        return "CT", f"as the lowest value of one scan is {lowest:.0f}"
    return "MR", f"as nothing names it and the lowest value of one scan is {lowest:.0f}"


def _folded(manifest: Manifest, root: Path, seed: int, found: _Found) -> Manifest:
    patients = len({case.patient for case in manifest.training})
    folds = max([min(5, patients), *(case.fold + 1 for case in manifest.training if case.fold is not None)])
    if folds < 2:
        found.notes.append(f"made no folds, as {patients} labelled patients can't be split")
        return manifest
    manifest, note = fold_manifest(manifest, root=root, folds=folds, seed=seed, survey=found.survey)
    found.notes.append(note)
    return manifest


def _config_text(name: str, manifest: Manifest, command: str) -> str:
    folded = any(case.fold is not None for case in manifest.training)
    values = {
        "name": name,
        "data.manifest": f"{name}.json",
        "data.fold": 0 if folded else None,
        "tracking.images": False,
    }
    reasons = {
        "tracking.images": _NO_IMAGES,
        "prepare.preset": "On a CPU start with small, and a learning_rate of 2e-3; 'medseg plan' tells where steps are few.",
        "train.augmentation.mirror_axes": "null takes the plan's. With left and right classes in fewer than 6 cases: [y, z].",
    }
    return commented_config(command=command, values=values, reasons=reasons)


def _tell(kind: Kind, manifest: Manifest, found: _Found, paths: Sequence[Path], command: str) -> None:
    labels = ", ".join(f"{name} {'/'.join(map(str, values))}" for name, values in manifest.labels.items())
    lines = [
        f"found {_KINDS[kind]}: {len(manifest.training)} labelled cases, {len(manifest.testing)} without label or for testing",
        f"  channels {', '.join(c.name for c in manifest.channels)}; labels {labels}",
        *(f"  {note}" for note in (*found.built.notes, *found.notes)),
        *(f"wrote {path}" for path in paths),
        "look through both, then:",
        f"  {command}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
