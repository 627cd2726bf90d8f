"""Predicted quality on hippocampus, out of fold, and scans that are not like those of training.

    medseg train --config configs/hippocampus.yaml --data-root hippocampus --fold all --work WORK
    python benchmarks/quality_hippocampus.py --work WORK --data-root hippocampus

The first command trains the folds and calibrates (`medseg crossval` does the latter alone, from masks there are). This script
reads ``WORK/crossvalidation/quality_cases.csv``, whose every line is a structure judged by a calibration of the other folds,
and prints how often the bound holds (it promises 90 %), what reviewing the riskiest fifth finds of the worst tenth (with a 95 %
interval over cases), and the expected Dice's error beside that of always saying the mean. Then it changes one scan in every way
that the input contract knows and prints the verdicts.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.crossvalidation.calibrating import found_share
from medseg.imaging import Header, Volume, read_volume
from medseg.inference.contract import InputContract, check_scan, check_volumes

_DRAWS = 2000
Numbers = npt.NDArray[np.float64]


def main() -> None:
    """Prints the figures as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    args = parser.parse_args()
    report(args.work / "crossvalidation" / "quality_cases.csv")
    model = args.work / "crossvalidation" / "model"
    info = json.loads((model / "model.json").read_text())
    member = json.loads((model / info["members"][0]["folder"] / "model.json").read_text())
    if "contract" not in member:
        print("\nThe model has no contract (trained by an older medseg).")
        return
    contracts(
        InputContract.from_plain(member["contract"]), next(iter(sorted(args.data_root.glob("imagesTr/*.nii.gz"))))
    )


def report(path: Path) -> None:
    """Coverage, review and error."""
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    covered: dict[str, list[bool]] = {}
    cases: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        expected, bound, dice = (float(row[name]) for name in ("expected_dice", "dice_bound", "dice"))
        covered.setdefault(row["class"], []).append(dice >= bound)
        cases.setdefault(row["case"], []).append((expected, dice))
    risk = np.array([1 - np.mean([one[0] for one in own]) for own in cases.values()])
    quality = np.array([np.mean([one[1] for one in own]) for own in cases.values()])
    every = [one for own in covered.values() for one in own]
    print(f"{len(cases)} cases, mean Dice {quality.mean():.4f} (SD {quality.std():.4f}, worst tenth below "
          f"{np.quantile(quality, 0.1):.4f})\n")  # fmt: skip
    print("| | found | wanted |\n| --- | --- | --- |")
    print(f"| Dice above the bound, all | {np.mean(every):.3f} | 0.87 to 0.93 |")
    for name, own in covered.items():
        print(f"| Dice above the bound, {name} | {np.mean(own):.3f} | |")
    low, high = interval(risk, quality)
    print(
        f"| worst tenth found in the riskiest fifth | {found_share(risk, quality):.2f} ({low:.2f} to {high:.2f}) | > 0.50 |"
    )
    error, mean = np.abs(1 - risk - quality).mean(), np.abs(quality - quality.mean()).mean()
    print(f"| mean error of expected Dice | {error:.4f} | below that of saying the mean, {mean:.4f} |")


def interval(risk: Numbers, quality: Numbers) -> tuple[float, float]:
    """95 % interval of the found share, cases drawn with replacement."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(risk), len(risk)) for _ in range(_DRAWS))
    low, high = np.quantile([found_share(risk[draw], quality[draw]) for draw in draws], (0.025, 0.975))
    return float(low), float(high)


def contracts(contract: InputContract, path: Path) -> None:
    """One scan, changed in every way that is looked at."""
    own = read_volume(path)
    header = own.header
    assert header is not None
    print("\n| scan | verdict | reason |\n| --- | --- | --- |")
    for name, volume in variants(own, header).items():
        verdict = check_scan(volume, contract)
        print(f"| {name} | {verdict.status} | {'; '.join(verdict.reasons)} |")
    for name, share in (("empty mask", 0.0), ("tiny mask", 0.01), ("large mask", 3.0)):
        sizes = {one: share * span[1] for one, span in contract.volume_ml.items()}
        print(f"| {name} | flags | {'; '.join(check_volumes(sizes, contract))} |")


def variants(own: Volume, header: Header) -> dict[str, Volume]:
    """Name to the changed scan."""

    def scaled(factor: float) -> Volume:
        affine = own.affine @ np.diag([factor, factor, factor, 1.0])
        return Volume(own.array, affine, replace(header, affine=affine))

    def cut(size: int) -> Volume:
        return Volume(own.array[:, :, :, :size], own.affine, replace(header, shape=(*own.shape[:2], size)))

    angle = np.radians(30)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    wide = np.pad(own.array, ((0, 0), (100, 100), (0, 0), (0, 0)))
    return {
        "as it is": own,
        "voxels 1.6 times as large": scaled(1.6),
        "voxels in metres": scaled(0.001),
        "a whole head's field of view": Volume(wide, own.affine, replace(header, shape=wide.shape[1:])),
        "six slices": cut(6),
        "two channels": Volume(np.repeat(own.array, 2, axis=0), own.affine, header),
        "a picture": replace(cut(1), header=replace(header, planar=True, shape=(*own.shape[:2], 1))),
        "intensities of another kind": Volume(own.array * 1000 + 1e6, own.affine, header),
        "nothing in it": Volume(np.zeros_like(own.array), own.affine, header),
        "NaN in it": Volume(np.where(own.array > own.array.mean(), np.nan, own.array), own.affine, header),
        "30 degrees oblique": Volume(own.array, turn @ own.affine, replace(header, affine=turn @ own.affine)),
        "no orientation in its header": Volume(own.array, own.affine, replace(header, qform_code=0, sform_code=0)),
    }


if __name__ == "__main__":
    main()
