"""The entry point of an exported container: scans in, masks out, as Grand Challenge runs it.

``python -m medseg.exchange.challenge`` reads ``/input/images/<socket>/*.mha`` (or any folder of scans) and writes
``/output/images/<name>/<scan>.mha``. It needs no network, writes nowhere but into the output, and ends after one start's
cases. What it should do is in ``challenge.json`` beside the model: it is built into the container, not chosen at its start.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.durable import read_json
from medseg.errors import MedsegError, PartialError, UsageError

_LOG = logging.getLogger(__name__)

SETTINGS = "challenge.json"
SETTINGS_FORMAT = 1
_HOME = Path("/opt/app")


@dataclass(frozen=True)
class Settings:
    """What a container does with its input.

    Attributes:
        output: name of the folder below ``/output/images``.
        inputs: sockets (folders below ``/input/images``), one per channel or one with all; empty takes those that are there.
        suffix: of the masks, which decides their format.
        device: "cpu" or "cuda".
    """

    output: str
    inputs: tuple[str, ...] = ()
    suffix: str = ".mha"
    device: str = "cpu"

    def plain(self) -> dict[str, Any]:
        """As JSON-able values."""
        values = {"output": self.output, "inputs": list(self.inputs), "suffix": self.suffix, "device": self.device}
        return {"format": SETTINGS_FORMAT, "kind": "medseg challenge", **values}


def read_settings(path: Path) -> Settings:
    """Reads ``challenge.json``.

    Raises:
        InputError: it is missing or no JSON.
        UsageError: a newer medseg wrote it.
    """
    values = read_json(path)
    if values.pop("kind", None) != "medseg challenge" or values.pop("format", None) != SETTINGS_FORMAT:
        raise UsageError(f"{path.name}: is none that this medseg reads; export the container again")
    return Settings(**{**values, "inputs": tuple(values["inputs"])})


def main(argv: Sequence[str] | None = None) -> int:
    """Segments what lies in the input folder.

    Returns:
        0; else the exit code of what went wrong (docs/conventions.md), 4 where some of several scans failed.
    """
    parser = argparse.ArgumentParser(
        prog="medseg challenge", description="Masks for the scans in a folder, as a container."
    )
    parser.add_argument("--input", type=Path, default=Path("/input"), metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path("/output"), metavar="DIR")
    parser.add_argument("--home", type=Path, default=_HOME, metavar="DIR", help="with model/ and challenge.json")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        done = segment(args.input, args.output, home=args.home)
    except MedsegError as error:
        _LOG.error("%s", error)
        return error.exit_code
    _LOG.info("%d masks written", done)
    return 0


def segment(source: Path, output: Path, *, home: Path) -> int:
    """Writes a mask per scan; returns how many.

    Args:
        source: ``/input``, with ``images/<socket>/`` in it or scans.
        output: ``/output``; masks go to ``images/<name>/`` below.
        home: holds ``model/`` and ``challenge.json``.

    Raises:
        UsageError: the input has no scan, or other sockets than the model needs.
        PartialError: some of several scans could not be done; the rest is.
        MedsegError: the only scan could not be done, or the model is damaged.
    """
    from medseg.inference.model import load_models
    from medseg.inference.predictor import Predictor
    from medseg.networks.precision import choose_device

    settings = read_settings(home / SETTINGS)
    device = choose_device(settings.device)
    predictor = Predictor(load_models(home / "model", device=device), device=device)
    cases = _cases(source, settings, channels=predictor.models[0].plan.channels)
    failed = []
    for name, images in cases:
        try:
            predictor.predict(images, output=output / "images" / settings.output / f"{name}{settings.suffix}")
        except MedsegError as error:
            if len(cases) == 1:
                raise
            _LOG.error("%s", error)
            failed.append(name)
    if failed:
        raise PartialError(f"{len(failed)} of {len(cases)} scans could not be done; see the lines above")
    return len(cases)


def _cases(source: Path, settings: Settings, *, channels: Sequence[Any]) -> list[tuple[str, tuple[Path, ...]]]:
    """Name and files of each scan."""
    from medseg.inference.cases import find_cases

    images = source / "images"
    if not images.is_dir():
        if not source.is_dir():
            raise UsageError(f"{source}: no such folder; mount the scans there")
        return [(case.id, case.images) for case in find_cases([source], channels=channels)]
    sockets = settings.inputs or tuple(sorted(path.name for path in images.iterdir() if path.is_dir()))
    missing = [name for name in sockets if not (images / name).is_dir()]
    if missing or not sockets:
        raise UsageError(
            f"images: holds no folder {(missing or ['at all'])[0]}, expected {', '.join(sockets) or 'a socket'}"
        )
    if len(sockets) == 1:
        return [(case.id, case.images) for case in find_cases([images / sockets[0]], channels=channels)]
    # A socket more than there are channels is refused below.
    of_sockets = [channels[place : place + 1] or channels[:1] for place in range(len(sockets))]
    parts = [find_cases([images / name], channels=own) for name, own in zip(sockets, of_sockets, strict=True)]
    for name, found in zip(sockets, parts, strict=True):
        if len(found) != 1 or len(sockets) != len(channels):
            raise UsageError(
                f"images/{name}: is one of {len(sockets)} sockets and holds {len(found)} scans, expected {len(channels)} "
                "sockets (one per channel) with one scan each; name them with --inputs at the export"
            )
    return [(parts[0][0].id, tuple(found[0].images[0] for found in parts))]


if __name__ == "__main__":
    sys.exit(main())
