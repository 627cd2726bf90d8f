"""Whether expected Dice falls where masks get worse for a reason that can be seen: scans spoilt in known ways.

    python benchmarks/quality_corrupted.py --make SPOILT --scans LIST.txt --seed K
    medseg infer SPOILT --model WORK/runs/fold_K/model --output MASKS_K --contract off
    python benchmarks/quality_corrupted.py --clean WORK/predictions/fold_* --spoilt MASKS_0 MASKS_1 --scans SCANS \\
        --references LABELS --labels anterior=1,posterior=2

The first command writes each scan of the list (held-out cases of fold K) with noise, blur, a bias field or thick slices, in
turn and of random strength. The last one judges clean and spoilt masks by the calibration of the clean ones of the other
folds, which never saw a spoilt scan. The input contract, which refuses many of them, is off.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from quality_left_out import interval, judged, ranks
from scipy import ndimage

from medseg.crossvalidation.calibrating import JudgedCase, fit_calibration, found_share
from medseg.imaging import Volume, read_volume, write_volume

_KINDS = ("noise", "blur", "bias", "slices")


def main() -> None:
    """Makes scans or prints figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--clean", type=Path, nargs="+")
    parser.add_argument("--spoilt", type=Path, nargs="+")
    parser.add_argument("--references", type=Path)
    parser.add_argument("--labels", default="")
    args = parser.parse_args()
    if args.make:
        for number, path in enumerate(args.scans.read_text().split()):
            volume = read_volume(Path(path))
            spoilt = spoil(volume.array[0], number, args.seed)
            write_volume(
                Volume(spoilt[None], volume.affine, volume.header), args.make / Path(path).name, like=volume.header
            )
        return
    values = {name: int(value) for name, value in (part.split("=") for part in args.labels.split(","))}

    def cases(folders: Sequence[Path]) -> list[JudgedCase]:
        every = [(path, fold) for fold, folder in enumerate(folders) for path in sorted(folder.glob("*.nii.gz"))]
        return [judged(path, fold, args.scans, args.references, values) for path, fold in every]

    report(cases(args.clean), cases(args.spoilt), tuple(values))


def spoil(array: npt.NDArray[np.float32], number: int, seed: int) -> npt.NDArray[np.float32]:
    """The scan (X, Y, Z), spoilt in the ``number``-th way."""
    rng, deviation = np.random.default_rng(1000 * seed + number), float(array.std())
    kind = _KINDS[number % len(_KINDS)]
    if kind == "noise":
        result = array + rng.normal(size=array.shape) * deviation * rng.uniform(0.3, 1.5)
    elif kind == "blur":
        result = ndimage.gaussian_filter(array, rng.uniform(0.8, 2.2))
    elif kind == "bias":
        places = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in array.shape], indexing="ij"))
        way = rng.normal(size=3)
        result = array * np.exp(rng.uniform(0.5, 1.6) * np.tensordot(way / np.linalg.norm(way), places, 1))
    else:
        step = int(rng.integers(2, 5))
        result = np.repeat(array[:, :, ::step], step, axis=2)[:, :, : array.shape[2]]
    return np.asarray(result, np.float32)


def report(clean: Sequence[JudgedCase], spoilt: Sequence[JudgedCase], names: Sequence[str]) -> None:
    """The figures as Markdown."""
    groups = sorted({case.group for case in clean})
    of = {fold: fit_calibration([c for c in clean if c.group != fold], names, model_sha256="") for fold in groups}

    def told(cases: Sequence[JudgedCase]) -> npt.NDArray[np.float64]:
        found = [
            [(*(of[case.group].estimate(case.structures, name) or (0.0, 0.0)), case.dice[name]) for name in names]
            for case in cases
        ]
        return np.array(found)  # (cases, classes, (expected, bound, Dice))

    print("| masks | cases | Dice | expected | above the bound | rank correlation | found (95 %) |")
    print("| --- " * 7 + "|")
    tables = {"clean": told(clean), "spoilt": told(spoilt)}
    tables["all"] = np.concatenate(list(tables.values()))
    for what, table in tables.items():
        risk, dice = 1 - table[:, :, 0].mean(axis=1), table[:, :, 2].mean(axis=1)
        low, high = interval(risk, dice)
        print(
            f"| {what} | {len(table)} | {dice.mean():.3f} ± {dice.std():.3f} | {1 - risk.mean():.3f} | "
            f"{(table[:, :, 2] >= table[:, :, 1]).mean():.3f} | {np.corrcoef(ranks(-risk), ranks(dice))[0, 1]:.2f} | "
            f"{found_share(risk, dice):.2f} ({low:.2f} to {high:.2f}) |"
        )


if __name__ == "__main__":
    main()
