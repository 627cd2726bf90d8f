"""A build context for a container that segments without network, from a read-only root, as a user without rights."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

from medseg.durable import write_json, write_text
from medseg.errors import EnvironmentFault, UsageError
from medseg.exchange.challenge import SETTINGS, Settings

_SOCKET = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")


def write_container(
    folder: Path, model: Path, *, settings: Settings, wheels: Path | None, extras: Sequence[str] = ()
) -> None:
    """Writes Dockerfile, model, settings, wheels and a README with the commands.

    Args:
        folder: there already.
        model: a model folder of any kind; it is copied as it is.
        settings: what the container does; ``device`` "cuda" makes it one for CUDA.
        wheels: folder with medseg's wheel and those of all that it needs; None leaves ``wheels/`` to be filled.
        extras: of medseg's, such as "onnx" for an ONNX model.

    Raises:
        UsageError: a name is none that Grand Challenge allows, wheels are missing, or torch's is not for CUDA.
        EnvironmentFault: a file can't be copied.
    """
    for name in (settings.output, *settings.inputs):
        if not _SOCKET.fullmatch(name):
            raise UsageError(f"{name!r}: is no name of a socket, expected small letters, digits and hyphens; change it")
    if wheels is not None:
        refuse_missing_wheels(wheels, cuda=settings.device == "cuda", extras=extras)
    try:
        shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns(".tmp-*", "onnx", ".lock*"))
        (folder / "wheels").mkdir()
        for wheel in sorted(wheels.glob("*.whl")) if wheels is not None else ():
            _link_or_copy(wheel, folder / "wheels" / wheel.name)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder.name}: can't be filled ({error.strerror}); check the disk's free space"
        ) from error
    cuda = settings.device == "cuda"
    package = f"medseg[{','.join(extras)}]" if extras else "medseg"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    write_json(folder / SETTINGS, settings.plain())
    write_text(folder / "Dockerfile", _DOCKERFILE.format(python=python, package=package, cuda=_CUDA if cuda else ""))
    write_text(folder / ".dockerignore", "README.md\ntry.sh\nexport.json\n")
    write_text(folder / "try.sh", _TRY.format(gpus="--gpus all " if cuda else ""))
    write_text(folder / "README.md", _README.format(output=settings.output, package=package, version=version("medseg")))
    (folder / "try.sh").chmod(0o755)


def refuse_missing_wheels(wheels: Path, *, cuda: bool, extras: Sequence[str] = ()) -> None:
    """Raises UsageError where ``wheels`` lacks medseg's wheel or one that it needs by itself, or torch's is for CPUs only."""
    found = {_plain_name(path.name.split("-")[0]): path.name for path in wheels.glob("*.whl")}
    wanted = ["medseg"]
    for line in requires("medseg") or ():
        name, _, condition = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", condition)
        if extra is None or extra[1] in extras:
            wanted.append(re.split(r"[^A-Za-z0-9._-]", name.strip(), maxsplit=1)[0])
    missing = sorted(name for name in map(_plain_name, wanted) if name not in found)
    if missing:
        raise UsageError(
            f"{wheels.name}: holds no wheel of {', '.join(missing)}, expected medseg's and all that it needs; "
            f"fill it with: python -m pip wheel --wheel-dir {wheels} ."
        )
    if cuda and "+cpu" in found["torch"]:
        raise UsageError(
            f"{found['torch']}: is torch for CPUs, expected one for CUDA with --cuda; fetch it from torch's index"
        )


def _plain_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


_DOCKERFILE = """\
# syntax=docker/dockerfile:1
# medseg's model in a container. The build needs no network beside the base image: wheels/ holds every package.
ARG BASE=python:{python}-slim
FROM ${{BASE}}

RUN --mount=type=bind,source=wheels,target=/wheels \\
    python -m pip install --no-cache-dir --no-index --find-links /wheels "{package}"

COPY model /opt/app/model
COPY challenge.json /opt/app/challenge.json

# The root may be read-only: what a library wants to cache goes to /tmp, and nothing else is written beside /output.
ENV HOME=/tmp TMPDIR=/tmp XDG_CACHE_HOME=/tmp MPLCONFIGDIR=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
{cuda}USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "medseg.exchange.challenge"]
"""

_CUDA = "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility\n"

_TRY = """\
#!/bin/sh
# Builds the image and runs it as a challenge does: no network, read-only root, no rights.
#   ./try.sh SCANS MASKS      (SCANS/images/<socket>/*.mha, or a folder of scans)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
scans=$(cd "$1" && pwd)
mkdir -p "$2"
masks=$(cd "$2" && pwd)
chmod 777 "$masks"
docker build --tag medseg-model "$here"
docker run --rm {gpus}--network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --shm-size 128m \\
  --volume "$scans":/input:ro --volume "$masks":/output medseg-model
"""

_README = """\
# A medseg model in a container

Reads `/input/images/<socket>/*.mha` (one folder per channel, one scan each), or scans of any kind in `/input`, and writes
`/output/images/{output}/<scan>.mha`. No network, no rights, read-only root with a writable `/tmp`. Made by medseg {version}.

- `model/`: the model folder; every file in it is checked against its SHA-256 at each start. `LICENSE` in it, where there
  is one, is the licence of the weights.
- `wheels/`: every Python package. Where it is empty, fill it on a machine of the same kind, in medseg's checkout:
  `python -m pip wheel --wheel-dir wheels "{package}"` (for `medseg` itself: `python -m pip wheel --wheel-dir wheels .`)
- `./try.sh SCANS MASKS` builds the image and runs it as a challenge does.
- To hand it in: `docker save medseg-model | gzip > medseg-model.tar.gz`

Research software, no medical device.
"""
