"""Predicted quality, tested with whole folds and with whole persons left out, with and without what the scan looks like.

    medseg infer --config configs/hippocampus.yaml --data-root hippocampus --set data.fold=K --probabilities fp16 --work WORK
    python benchmarks/quality_left_out.py --predictions WORK/predictions/fold_* --scans hippocampus/imagesTr \\
        --references hippocampus/labelsTr --labels anterior=1,posterior=2

Each folder holds out-of-fold masks with their sidecars and, where a sidecar is older than `medseg.inference.appearance`, the
probabilities that make up for it (the scan by its own mean and SD, as the plan of these data has it). Every case is judged by
the calibration of the others that `medseg crossval` would fit: once without its fold, once without its person: of the
Decathlon's hippocampus the numbers 2k - 1 and 2k look like one person's two sides. Intervals are bootstraps over cases.
``--train N`` fits on the first N folders and judges the others, for features that were found on the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.crossvalidation.calibrating import JudgedCase, figures, fit_calibration, found_share, predict_left_out
from medseg.imaging import read_label_map, read_volume
from medseg.inference.appearance import APPEARANCE, Appearance, seen_image
from medseg.runner.sidecar import read_sidecar

_DRAWS = 2000


def main() -> None:
    """Prints the figures as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--train", type=int, default=0)
    args = parser.parse_args()
    values = {name: int(value) for name, value in (part.split("=") for part in args.labels.split(","))}
    cases = [
        judged(path, fold, args.scans, args.references, values)
        for fold, folder in enumerate(args.predictions)
        for path in sorted(folder.glob("*.nii.gz"))
    ]
    print(
        "| left out | features | cases | found (95 %) | rank correlation | above the bound | error | always the mean |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for left_out in ("fold", "person"):
        grouped = cases if left_out == "fold" else [replace(one, group=person_of(one.id) % 10) for one in cases]
        for looks in (False, True):
            line(left_out, grouped if looks else [without_looks(one) for one in grouped], tuple(values), looks=looks)
    twins(cases)
    if args.train:
        later(cases, tuple(values), args.train)


def judged(path: Path, fold: int, scans: Path, references: Path, values: dict[str, int]) -> JudgedCase:
    """One mask with what its sidecar says and its Dice."""
    case = path.name.removesuffix(".nii.gz")
    sidecar = read_sidecar(path)
    assert sidecar is not None
    kept = sidecar.extra["quality"]
    mask, truth = read_label_map(path).array, read_label_map(references / path.name).array
    dice = {
        name: 2 * float(((mask == v) & (truth == v)).sum()) / float((mask == v).sum() + (truth == v).sum())
        for name, v in values.items()
    }
    structures = {name: dict(own) for name, own in kept["structures"].items()}
    if "brightness" not in next(iter(structures.values())):
        image = read_volume(scans / path.name).array
        with np.load(path.parent / "maps" / f"{case}_probabilities.npz") as stored:
            shares = np.moveaxis(stored["probabilities"].astype(np.float32), -1, 0)
        look = Appearance(seen_image((image - image.mean()) / image.std()), len(values))  # type: ignore[arg-type]
        look.add(np.concatenate([1 - shares.sum(axis=0, keepdims=True), shares]).argmax(axis=0))
        for number, own in enumerate(structures.values()):
            own.update(look.features(number))
    return JudgedCase(
        id=case, group=fold, structures=structures, inside=tuple(kept["inside"]), outside=tuple(kept["outside"]),
        voxel_ml=kept["voxel_ml"], dice=dice, wrong_ml=float(((mask != truth)).sum()) * kept["voxel_ml"],
    )  # fmt: skip


def without_looks(case: JudgedCase) -> JudgedCase:
    """The case as an older medseg knew it."""
    kept = {
        name: {key: value for key, value in own.items() if key not in APPEARANCE}
        for name, own in case.structures.items()
    }
    return replace(case, structures=kept)


def person_of(case_id: str) -> int:
    """Who a scan may be of."""
    return (int(case_id.rsplit("_", maxsplit=1)[-1]) + 1) // 2


def line(left_out: str, cases: Sequence[JudgedCase], names: Sequence[str], *, looks: bool) -> None:
    """One line of the table."""
    predictions = predict_left_out(cases, names)
    told = figures(predictions, cases)
    of = {case: [one for one in predictions if one.case == case] for case in sorted({one.case for one in predictions})}
    risk = np.array([1 - np.mean([one.expected for one in own]) for own in of.values()])
    dice = np.array([np.mean([one.dice for one in own]) for own in of.values()])
    low, high = interval(risk, dice)
    error = told["mean_absolute_error"]
    print(
        f"| {left_out} | {'mask and scan' if looks else 'mask'} | {len(of)} | {told['found_of_worst_tenth']:.2f} "
        f"({low:.2f} to {high:.2f}) | {told['rank_correlation']:.2f} | {told['coverage']['found']:.3f} | "
        f"{error['expected_dice']:.4f} | {error['always_the_mean']:.4f} |"
    )


def interval(risk: npt.NDArray[np.float64], dice: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the found share, cases drawn with replacement."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(risk), len(risk)) for _ in range(_DRAWS))
    low, high = np.quantile([found_share(risk[draw], dice[draw]) for draw in draws], (0.025, 0.975))
    return float(low), float(high)


def ranks(values: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of values that are all different."""
    return np.argsort(np.argsort(np.asarray(values))).astype(np.float64)


def twins(cases: Sequence[JudgedCase]) -> None:
    """How alike the Dice of the two scans of a pair is: what could be told at most by who a scan is of."""
    mean = {case.id: float(np.mean(list(case.dice.values()))) for case in cases}
    of: dict[int, list[float]] = {}
    for case, value in mean.items():
        of.setdefault(person_of(case), []).append(value)
    pairs = [own for own in of.values() if len(own) == 2]
    one, other = [a for a, b in pairs] + [b for a, b in pairs], [b for a, b in pairs] + [a for a, b in pairs]
    print(
        f"\n{len(pairs)} pairs of scans: rank correlation of their mean Dice {np.corrcoef(ranks(one), ranks(other))[0, 1]:.2f}"
    )


def later(cases: Sequence[JudgedCase], names: Sequence[str], train: int) -> None:
    """Fitted on the first folders, judged on the others."""
    first, last = [one for one in cases if one.group < train], [one for one in cases if one.group >= train]
    print(
        "\n| fitted on | judged | features | found | rank correlation | above the bound | error |\n"
        + "| --- " * 7
        + "|"
    )
    for looks in (False, True):
        own, new = (part if looks else [without_looks(one) for one in part] for part in (first, last))
        fitted = fit_calibration(own, names, model_sha256="")
        told = [[(*(fitted.estimate(c.structures, n) or (0, 0)), c.dice[n]) for n in names] for c in new]
        table = np.array(told)  # (cases, classes, (expected, bound, Dice))
        risk, dice = 1 - table[:, :, 0].mean(axis=1), table[:, :, 2].mean(axis=1)
        print(
            f"| {len(own)} | {len(new)} | {'mask and scan' if looks else 'mask'} | {found_share(risk, dice):.2f} | "
            f"{np.corrcoef(ranks(-risk), ranks(dice))[0, 1]:.2f} | {(table[:, :, 2] >= table[:, :, 1]).mean():.3f} | "
            f"{np.abs(table[:, :, 0] - table[:, :, 2]).mean():.4f} |"
        )


if __name__ == "__main__":
    main()
