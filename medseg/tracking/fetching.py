"""A registered model as a local folder: ``models:/NAME@ALIAS`` is ``<work>/registry/TRACKER/NAME/VERSION-SHA/model``.

A process of its own asks MLflow, so that the verb that predicts neither waits for MLflow's import nor runs with its settings. A
version that is named by its number and lies there already is taken without asking anybody; an alias may have moved, and is
looked up each time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg.durable import read_json, remove_stale_temporaries, sha256_file
from medseg.durable.writing import temporary_name
from medseg.errors import EnvironmentFault, InputError, MedsegError
from medseg.tracking.address import StoreAddress, mlflow_is_installed, tracker_at
from medseg.tracking.process import sender_environment, set_environment
from medseg.tracking.registry import ModelName, RegisteredVersion, Registry

_LOG = logging.getLogger(__name__)

SCHEME = "models:"
CACHE_NAME = "registry"
_SECONDS = 1800.0
"""For all files of a model; each answer of the tracker has its own, shorter patience."""
_SHA_CHARACTERS = 16
_SHA256 = 64


def is_registered_name(text: str) -> bool:
    """Whether a model is named by the registry and not by its folder."""
    return text.startswith(SCHEME)


def model_folder(name: str, *, work: Path, tracker: str | None = None) -> Path:
    """The folder of a registered model, fetched where it is not there yet.

    Args:
        name: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        work: the work folder, whose tracker is asked and in which the copy is kept.
        tracker: another tracker's address.

    Raises:
        UsageError: ``name`` is none.
        InputError: there is no such model, or it is not what was registered.
        EnvironmentFault: the tracker can't be had.
    """
    model = ModelName.parse(name)
    if model.version is not None:
        kept = _kept(cache(work, tracker_at(work, tracker), model.name), model.version)
        if kept is not None:
            return kept
    if not mlflow_is_installed():
        raise EnvironmentFault(f"{model}: needs mlflow, which is not installed; pip install mlflow")
    command = [sys.executable, "-P", "-m", "medseg.tracking.fetching", str(model), "--work", str(work.resolve())]
    command += ["--tracker", tracker] if tracker else []
    try:
        done = subprocess.run(  # noqa: S603 - our own module, no shell
            command, capture_output=True, text=True, env=sender_environment(), timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        minutes = f"{_SECONDS / 60:.0f} minutes"
        raise EnvironmentFault(f"{model}: did not come within {minutes}; try again, or copy the folder") from error
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise EnvironmentFault(f"{model}: can't be fetched (exit code {done.returncode}); see mlflow") from error
    if "error" in said:
        raise (InputError if said["code"] == InputError.exit_code else EnvironmentFault)(said["error"])
    _LOG.info("%s is version %s, model %s", model, said["version"], said["sha256"][:12])
    return Path(said["folder"])


def cache(work: Path, address: StoreAddress, name: str) -> Path:
    """Where the versions of a registered model are kept: two trackers may each have a model of that name."""
    return work / CACHE_NAME / address.code / name


def fetch(registry: Registry, version: RegisteredVersion, place: Path) -> Path:
    """The folder of a version below ``place``; one that is there already is not fetched again.

    Raises:
        InputError: it is not what was registered, or not whole.
        EnvironmentFault: the tracker or the disk can't be had.
    """
    kept = _kept(place, version.version, version.sha256)
    if kept is not None:
        return kept
    try:
        place.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(place)  # of fetches that were killed
        scratch = temporary_name(place / f"{version.version}")
        scratch.mkdir()
    except OSError as error:
        raise EnvironmentFault(f"{version}: can't be kept ({error.strerror}); check the disk and --work") from error
    try:
        (scratch / "new").mkdir()
        registry.download(version, scratch / "new")
        sha256 = _checked(version, scratch / "new" / "model")
        final = place / f"{version.version}-{sha256[:_SHA_CHARACTERS]}"
        with contextlib.suppress(OSError):  # a damaged copy makes room
            final.rename(scratch / "damaged")
        with contextlib.suppress(OSError):  # another process was first: its copy is the same
            (scratch / "new").rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not _is_whole(final / "model", sha256):
        raise EnvironmentFault(
            f"{version}: the damaged copy in the work folder can't be replaced; remove registry/ there"
        )
    return final / "model"


def _checked(version: RegisteredVersion, model: Path) -> str:
    """Checksum of a model that was just downloaded.

    Raises:
        InputError: a file is missing or other than ``model.json`` says, or a link leads out of the folder.
    """
    if any(path.is_symlink() for path in model.rglob("*")):
        raise InputError(f"{version}: holds a link, expected files alone; register it again")
    sha256 = sha256_file(model / "model.json")
    if not _is_whole(model, sha256):
        raise InputError(f"{version}: a file of it is missing or damaged; register it again")
    return sha256


def _kept(place: Path, version: int, sha256: str | None = None) -> Path | None:
    """A version's folder where it is whole."""
    for folder in sorted(place.glob(f"{version}-*")):
        known = folder.name.partition("-")[2]
        if len(known) == _SHA_CHARACTERS and (sha256 or known).startswith(known) and _is_whole(folder / "model", known):
            return folder / "model"
    return None


def _is_whole(model: Path, sha256: str) -> bool:
    """Whether ``model.json`` has this checksum and every file that it names has its own.

    Members of an ensemble and a cascade's first stage are model folders inside it. Whoever wrote ``model.json`` may have
    written any name: those that lead out of the folder, or to itself, are refused.
    """
    try:
        if not sha256_file(model / "model.json").startswith(sha256):
            return False
        info = read_json(model / "model.json")
        inside = [*info.get("members", ()), *([info["previous"]] if "previous" in info else [])]
        return all(
            _is_plain_name(name) and sha256_file(model / name) == known for name, known in info.get("files", {}).items()
        ) and all(
            _is_plain_name(one["folder"])
            and len(one["sha256"]) == _SHA256
            and _is_whole(model / one["folder"], one["sha256"])
            for one in inside
        )
    except (OSError, InputError, AttributeError, KeyError, TypeError, ValueError):
        return False


def _is_plain_name(name: str) -> bool:
    """Whether a name leads to something directly inside a folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def main(argv: Sequence[str] | None = None) -> int:
    """Fetches one model; the last line of the output says where it is, or what is wrong, as JSON."""
    parser = argparse.ArgumentParser(prog="medseg.tracking.fetching")
    parser.add_argument("model")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tracker")
    args = parser.parse_args(argv)
    set_environment()
    try:
        address = tracker_at(args.work, args.tracker)
        registry = Registry(address, work=args.work)
        version = registry.get(ModelName.parse(args.model))
        folder = fetch(registry, version, cache(args.work, address, version.name))
        said = {"folder": str(folder), "version": version.version, "sha256": sha256_file(folder / "model.json")}
    except MedsegError as error:
        said = {"error": str(error), "code": error.exit_code}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
