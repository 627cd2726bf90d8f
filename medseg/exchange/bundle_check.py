"""A bundle against ``medseg infer``: the masks of MONAI's own command, and the scores of the parts that its config names."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medseg.exchange.bundle import run_bundle
from medseg.exchange.parity import CaseParity, Scan, compare_masks, compare_scores
from medseg.imaging import read_label_map, suffix_of, to_classes
from medseg.inference.ensemble import MaskMaker


def check_bundle(
    folder: Path,
    infer: MaskMaker,
    scans: Sequence[tuple[Sequence[Path], Scan]],
    *,
    threads: int | None = None,
) -> tuple[CaseParity, ...]:
    """Runs ``python -m monai.bundle run`` once over all scans and compares each mask, and each scan's scores.

    Args:
        folder: of the bundle.
        infer: the model's engine, on the CPU in the bundle's precision.
        scans: files of each scan, and the scan.
        threads: of torch in the other process.

    Raises:
        ModelError: the command failed.
        EnvironmentFault: what it needs is not installed.
    """
    inferer, network = _parts(folder)
    with _gathered([files for files, _ in scans]) as (top, names):
        run_bundle(folder.resolve(), top / "scans", top / "masks", threads=threads)
        found = []
        for name, (_, scan) in zip(names, scans, strict=True):
            array, grid = infer.prepare(scan.volume)
            own = infer.scores(array)
            largest, difference = compare_scores(own, inferer(torch.from_numpy(array)[None], network)[0].numpy())
            path = next((top / "masks").glob(f"{name}.*"))
            plan = infer.plan
            found.append(
                compare_masks(
                    infer.classes(own, grid),
                    to_classes(read_label_map(path), plan.labels, ignore=None, name=path.name),
                    scan,
                    class_names=infer.class_names,
                    plan=plan,
                    largest_score=largest,
                    score_difference=difference,
                )
            )
    return tuple(found)


def _parts(folder: Path) -> tuple[Any, torch.nn.Module]:
    """The inferer and the network that ``configs/inference.json`` describes, with the bundle's weights."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser["bundle_root"] = str(folder)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True, map_location="cpu"))
    return parser.get_parsed_content("inferer"), network.eval()


@contextmanager
def _gathered(cases: Sequence[Sequence[Path]]) -> Iterator[tuple[Path, list[str]]]:
    """A scratch folder whose ``scans/`` holds every case's files under a number, and those names."""
    with tempfile.TemporaryDirectory() as scratch:
        top, names = Path(scratch), []
        (top / "scans").mkdir()
        for number, files in enumerate(cases, start=1):
            names.append(f"case_{number:02d}")
            for channel, path in enumerate(files):
                stem = names[-1] if len(files) == 1 else f"{names[-1]}_{channel:04d}"
                if path.is_dir():
                    shutil.copytree(path, top / "scans" / stem)
                else:
                    (top / "scans" / f"{stem}{suffix_of(path) or ''}").symlink_to(path.resolve())
        yield top, names
