"""A registered model as a local folder: ``models:/NAME@ALIAS`` becomes ``<work>/registry/NAME/VERSION-SHA/model``.

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
import tempfile
from collections.abc import Sequence
from pathlib import Path

from medseg.durable import read_json, sha256_file
from medseg.errors import EnvironmentFault, InputError, MedsegError
from medseg.tracking.address import mlflow_is_installed, tracker_at
from medseg.tracking.process import sender_environment, set_environment
from medseg.tracking.registry import ModelName, RegisteredVersion, Registry

_LOG = logging.getLogger(__name__)

SCHEME = "models:"
CACHE_NAME = "registry"
_SECONDS = 1800.0
_SHA_CHARACTERS = 16


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
        kept = _kept(work, model.name, model.version)
        if kept is not None:
            return kept
    if not mlflow_is_installed():
        raise EnvironmentFault(f"{model}: needs mlflow, which is not installed; pip install mlflow")
    command = [sys.executable, "-P", "-m", "medseg.tracking.fetching", str(model), "--work", str(work.resolve())]
    command += ["--tracker", tracker] if tracker else []
    done = subprocess.run(  # noqa: S603 - our own module, no shell
        command, capture_output=True, text=True, env=sender_environment(), timeout=_SECONDS, check=False
    )
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise EnvironmentFault(f"{model}: can't be fetched (exit code {done.returncode}); see mlflow") from error
    if "error" in said:
        raise (InputError if said["code"] == InputError.exit_code else EnvironmentFault)(said["error"])
    _LOG.info("%s is version %s, model %s", model, said["version"], said["sha256"][:12])
    return Path(said["folder"])


def fetch(registry: Registry, version: RegisteredVersion, work: Path) -> Path:
    """The folder of a version below ``work``; one that is there already is not fetched again.

    Raises:
        InputError: it is not what was registered.
        EnvironmentFault: the tracker or the disk can't be had.
    """
    kept = _kept(work, version.name, version.version, version.sha256)
    if kept is not None:
        return kept
    place = work / CACHE_NAME / version.name
    place.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".tmp-", dir=place))
    try:
        (scratch / "new").mkdir()
        registry.download(version, scratch / "new")
        sha256 = sha256_file(scratch / "new" / "model" / "model.json")
        final = place / f"{version.version}-{sha256[:_SHA_CHARACTERS]}"
        with contextlib.suppress(OSError):  # a damaged copy makes room
            final.rename(scratch / "damaged")
        with contextlib.suppress(OSError):  # another process was first: its copy is the same
            (scratch / "new").rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final / "model"


def _kept(work: Path, name: str, version: int, sha256: str | None = None) -> Path | None:
    """A version's folder where it is whole."""
    for folder in sorted((work / CACHE_NAME / name).glob(f"{version}-*")):
        known = folder.name.partition("-")[2]
        if (sha256 or known).startswith(known) and _is_whole(folder / "model", known):
            return folder / "model"
    return None


def _is_whole(model: Path, sha256: str) -> bool:
    """Whether ``model.json`` has this checksum and every file that it names, members of an ensemble included, has its own."""
    try:
        if not sha256_file(model / "model.json").startswith(sha256):
            return False
        info = read_json(model / "model.json")
        files = all(sha256_file(model / name) == known for name, known in info.get("files", {}).items())
        return files and all(_is_whole(model / one["folder"], one["sha256"]) for one in info.get("members", ()))
    except (OSError, InputError, AttributeError, KeyError, TypeError):
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Fetches one model; the last line of the output says where it is, or what is wrong, as JSON."""
    parser = argparse.ArgumentParser(prog="medseg.tracking.fetching")
    parser.add_argument("model")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tracker")
    args = parser.parse_args(argv)
    set_environment()
    try:
        registry = Registry(tracker_at(args.work, args.tracker), work=args.work)
        version = registry.get(ModelName.parse(args.model))
        folder = fetch(registry, version, args.work)
        said = {"folder": str(folder), "version": version.version, "sha256": sha256_file(folder / "model.json")}
    except MedsegError as error:
        said = {"error": str(error), "code": error.exit_code}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
