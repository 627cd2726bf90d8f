"""``medseg manifest``: builds a manifest from a known layout, or gives one its folds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from medseg.cli.entry import Context, run_verb
from medseg.errors import LabelError, UsageError
from medseg.manifest import Manifest, load_manifest, save_manifest
from medseg.manifest.builders import (
    Built,
    build_from_bids,
    build_from_decathlon,
    build_from_dicom,
    build_from_folders,
    build_from_nnunet,
)
from medseg.manifest.folding import fold_manifest, keep_folds
from medseg.manifest.label_survey import LabelSurvey, guessed_labels, survey_labels

_PLACEHOLDER = {"background": (0,), "foreground": (1,)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb; returns its exit code."""
    about = "Build a manifest from a data folder's layout, or give one its folds."
    return run_verb("manifest", argv, body=_manifest, add_arguments=_arguments, description=about, needs_config=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    decathlon = _layout(layouts, "decathlon", "a dataset.json of the Medical Segmentation Decathlon")
    nnunet = _layout(layouts, "nnunet", "a raw folder of nnU-Net")
    folders = _layout(layouts, "folders", "files described by patterns")
    bids = _layout(layouts, "bids", "a BIDS-like tree")
    dicom = _layout(layouts, "dicom", "a tree with one DICOM series a folder")
    for parser_ in (nnunet, folders, bids, dicom):
        parser_.add_argument("--labels", type=label_values, metavar="A=1,B=2+3", help="class names with their values")
    for parser_ in (decathlon, nnunet):
        parser_.add_argument(
            "--splits", type=Path, metavar="FILE", help="splits_final.json [the one in FOLDER, if any]"
        )
    folders.add_argument("--image-pattern", required=True, metavar="PATTERN", help="such as 'images/{id}.png'")
    for parser_ in (folders, dicom):
        parser_.add_argument("--label-pattern", metavar="PATTERN", help="such as 'labels/{id}_mask.nii.gz'")
    folders.add_argument("--channels", type=_names, required=True, metavar="A,B", help="CT, MR, PET, RGB or T1,T2,...")
    folders.add_argument("--ignore", type=int, metavar="VALUE", help="label value of voxels that nobody labelled")
    bids.add_argument("--channels", type=_names, default=(), metavar="A,B", help="suffixes [those of all subjects]")
    bids.add_argument("--only", default="", metavar="TEXT", help="images must have this text in their path")
    bids.add_argument("--label-only", default="", metavar="TEXT", help="labels must have this text in their path")
    dicom.add_argument("--modality", metavar="CT", help="which series [the commonest]")
    split = layouts.add_parser("split", help="give the cases of a manifest their folds", allow_abbrev=False)
    split.add_argument("folder", type=Path, metavar="MANIFEST", help="a .json or .csv manifest")
    split.add_argument("--output", type=Path, metavar="FILE", help="where to write it [over MANIFEST]")
    # Left out of the namespace where it is not given, so that the common flag in front of the layout stays.
    text = "where the manifest's paths start [its own folder]"
    split.add_argument("--data-root", type=Path, metavar="DIR", default=argparse.SUPPRESS, help=text)
    _fold_arguments(split)


def _layout(
    layouts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    parser = layouts.add_parser(name, help=text, description=f"Build a manifest from {text}.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the data; the manifest's paths start there")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .json or .csv file")
    parser.add_argument("--name", metavar="TEXT", help="name of the data set")
    parser.add_argument("--licence", metavar="TEXT", help="its licence and source")
    parser.add_argument("--skip-missing", action="store_true", help="leave out cases that lack a file")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE; the folds in it are kept")
    _fold_arguments(parser)
    return parser


def _fold_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="number of folds, 0 for none [5]")
    parser.add_argument("--seed", type=int, default=12345, metavar="N", help="of the folds [12345]")
    parser.add_argument(
        "--stratify", default="auto", metavar="HOW", help="auto, classes, none or a further column's name [auto]"
    )
    parser.add_argument("--resplit", action="store_true", help="forget the folds there are and make new ones")


def label_values(text: str) -> dict[str, tuple[int, ...]]:
    """Class names with values from ``liver=1,tumour=2+3``."""
    labels: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        name, _, numbers = part.partition("=")
        values = numbers.split("+")
        if not name.strip() or not all(value.strip().isdigit() for value in values):
            raise argparse.ArgumentTypeError(f"{part!r} is no NAME=VALUE, expected such as liver=1,tumour=2+3")
        if name.strip() in labels:
            raise argparse.ArgumentTypeError(f"{name.strip()!r} is named twice; join its values with +")
        labels[name.strip()] = tuple(int(value) for value in values)
    return labels


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _manifest(context: Context) -> int:
    args = context.args
    if args.layout == "split":
        return _split(args)
    previous = _previous(args.output, overwrite=args.overwrite, resplit=args.resplit)
    built = _BUILDERS[args.layout](args)
    survey: LabelSurvey | None = None
    if getattr(args, "labels", ()) is None and args.layout in ("folders", "dicom"):
        built, survey = with_found_labels(built, args.folder)
    manifest = keep_folds(built.manifest, previous) if previous else built.manifest
    notes = list(built.notes)
    if manifest.training:
        manifest, folding = fold_manifest(
            manifest,
            root=args.folder,
            folds=args.folds,
            seed=args.seed,
            stratify=args.stratify,
            survey=survey,
            resplit=args.resplit,
        )
        notes.append(folding)
    save_manifest(manifest, args.output)
    _say(manifest, args.output, notes)
    return 0


def _previous(output: Path, *, overwrite: bool, resplit: bool) -> Manifest | None:
    if not output.exists():
        return None
    if not overwrite:
        raise UsageError(f"{output.name}: is there already; give --overwrite (its folds are kept) or another --output")
    return None if resplit else load_manifest(output)


def _split(args: argparse.Namespace) -> int:
    manifest = load_manifest(args.folder)
    output = args.output or args.folder
    root = args.data_root or args.folder.parent
    folded, note = fold_manifest(
        manifest, root=root, folds=args.folds, seed=args.seed, stratify=args.stratify, resplit=args.resplit
    )
    if folded.training != manifest.training or output != args.folder:
        save_manifest(folded, output)
    _say(folded, output, [note])
    return 0


def with_found_labels(built: Built, root: Path) -> tuple[Built, LabelSurvey]:
    """``built`` with classes for the values that its label files hold, where nobody named them.

    Raises:
        LabelError: label files can't be read, so their values stay unknown.
    """
    survey = survey_labels(built.manifest.training, root)
    if survey.faults:
        raise LabelError("\n".join(survey.faults))
    if not built.manifest.training or not any(survey.all_values):
        return replace(built, notes=(*built.notes, "no label values were found; name the classes yourself")), survey
    labels = guessed_labels(survey)
    seen = "all labels" if survey.complete else f"{len(survey.values)} labels of {len(built.manifest.training)}"
    named = ", ".join(f"{name} {values[0]}" for name, values in labels.items())
    note = f"classes are named by the values in {seen}: {named}; rename them in the manifest"
    return replace(built, manifest=replace(built.manifest, labels=labels), notes=(*built.notes, note)), survey


def _say(manifest: Manifest, output: Path, notes: Sequence[str]) -> None:
    counts = f"{len(manifest.training)} training and {len(manifest.testing)} testing cases"
    lines = [f"{output}: {counts}, channels {', '.join(c.name for c in manifest.channels)}"]
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, *(f"  {note}" for note in notes)]))


def _decathlon(args: argparse.Namespace) -> Built:
    return build_from_decathlon(
        args.folder, splits=args.splits, name=args.name, licence=args.licence, skip_missing=args.skip_missing
    )


def _nnunet(args: argparse.Namespace) -> Built:
    return build_from_nnunet(
        args.folder,
        splits=args.splits,
        labels=args.labels,
        name=args.name,
        licence=args.licence,
        skip_missing=args.skip_missing,
    )


def _folders(args: argparse.Namespace) -> Built:
    return build_from_folders(
        args.folder,
        images=args.image_pattern,
        labels=args.label_pattern,
        channels=args.channels,
        label_values=args.labels or _PLACEHOLDER,
        ignore=args.ignore,
        name=args.name,
        licence=args.licence,
        skip_missing=args.skip_missing,
    )


def _bids(args: argparse.Namespace) -> Built:
    return build_from_bids(
        args.folder,
        channels=args.channels,
        label_values=args.labels,
        only=args.only,
        label_only=args.label_only,
        name=args.name,
        licence=args.licence,
        skip_missing=args.skip_missing,
    )


def _dicom(args: argparse.Namespace) -> Built:
    return build_from_dicom(
        args.folder,
        labels=args.label_pattern,
        label_values=args.labels or _PLACEHOLDER,
        modality=args.modality,
        name=args.name,
        licence=args.licence,
        skip_missing=args.skip_missing,
    )


_BUILDERS: dict[str, Callable[[argparse.Namespace], Built]] = {
    "decathlon": _decathlon,
    "nnunet": _nnunet,
    "folders": _folders,
    "bids": _bids,
    "dicom": _dicom,
}
