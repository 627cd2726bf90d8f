"""The container's build context and its entry point, run as a challenge runs it: no network, /input, /output."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.errors import ScanError, UsageError
from medseg.exchange.challenge import Settings, main, read_settings, segment
from medseg.exchange.container import refuse_missing_wheels, write_container
from medseg.imaging import write_volume
from tests.inference.stand_ins import write_model
from tests.synthetic import scan


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    model = write_model(tmp_path_factory.mktemp("trained") / "model", licence=b"Mine.\n")
    write_container(folder, model, settings=Settings(output="organs"), wheels=None)
    return folder


def sockets(folder, *names):
    for name in names:
        path = folder / "images" / name / "scan.mha"
        path.parent.mkdir(parents=True)
        write_volume(scan("anisotropic").volume, path)
    return folder


def test_the_build_context(home):
    dockerfile = (home / "Dockerfile").read_text()
    assert "--no-index" in dockerfile
    assert "USER 10001" in dockerfile
    assert "NVIDIA" not in dockerfile
    assert f"python:{sys.version_info.major}.{sys.version_info.minor}-slim" in dockerfile
    assert read_settings(home / "challenge.json") == Settings(output="organs")
    assert (home / "model" / "weights.safetensors").is_file()
    assert (home / "model" / "LICENSE").read_bytes() == b"Mine.\n"
    assert "--network none --read-only" in (home / "try.sh").read_text()


def test_names_and_wheels_are_checked(tmp_path):
    with pytest.raises(UsageError, match="is no name of a socket"):
        write_container(tmp_path, tmp_path, settings=Settings(output="My Organs"), wheels=None)
    with pytest.raises(UsageError, match=r"holds no wheel of .*medseg.*torch"):
        refuse_missing_wheels(tmp_path, cuda=False)
    from importlib.metadata import requires

    names = [line.split(";")[0].strip() for line in requires("medseg") if "extra" not in line]
    for name in ["medseg", *(name.split(">")[0].split("[")[0].split("<")[0].split("=")[0] for name in names)]:
        (tmp_path / f"{name.replace('-', '_')}-2.0{'+cpu' if name == 'torch' else ''}-py3-none-any.whl").touch()
    refuse_missing_wheels(tmp_path, cuda=False)
    with pytest.raises(UsageError, match="is torch for CPUs"):
        refuse_missing_wheels(tmp_path, cuda=True)


def test_a_challenges_tree(tmp_path, home):
    source = sockets(tmp_path / "input", "mr")
    assert segment(source, tmp_path / "output", home=home) == 1
    written = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert written == ["output/images/organs/scan.mha"]
    own = medseg.load(home / "model").predict(source / "images" / "mr" / "scan.mha")
    mask = medseg.read_label_map(tmp_path / "output" / "images" / "organs" / "scan.mha")
    np.testing.assert_array_equal(mask.array, own.array)
    np.testing.assert_allclose(mask.affine, own.affine, atol=1e-5)


def test_what_is_refused(tmp_path, home):
    assert main(["--input", str(tmp_path / "none"), "--output", str(tmp_path), "--home", str(home)]) == 2
    two = sockets(tmp_path / "two", "one", "other")
    with pytest.raises(UsageError, match="is one of 2 sockets"):
        segment(two, tmp_path / "output", home=home)
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no folder at all"):
        segment(tmp_path / "empty", tmp_path / "output", home=home)
    broken = tmp_path / "broken" / "images" / "mr" / "scan.mha"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no image")
    with pytest.raises(ScanError, match=r"scan\.mha"):
        segment(tmp_path / "broken", tmp_path / "output", home=home)
    assert not (tmp_path / "output").exists()


def test_a_folder_of_scans_of_which_one_is_broken(tmp_path, home):
    source = tmp_path / "input"
    source.mkdir()
    write_volume(scan("anisotropic").volume, source / "good.nii.gz")
    (source / "bad.nii.gz").write_bytes(b"no image")
    arguments = ["--input", str(source), "--output", str(tmp_path / "output"), "--home", str(home)]
    assert main(arguments) == 4
    assert [path.name for path in (tmp_path / "output" / "images" / "organs").iterdir()] == ["good.mha"]


_WITHOUT_NETWORK = """
import socket, sys
def refuse(*_, **__):
    raise OSError("the test allows no network")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from medseg.exchange.challenge import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_entry_point_without_network(tmp_path, home):
    source = sockets(tmp_path / "input", "mr")
    before = sorted(path for path in tmp_path.rglob("*"))
    arguments = ["--input", source, "--output", tmp_path / "output", "--home", home]
    environment = {"PATH": "", "HOME": str(tmp_path / "nowhere"), "PYTHONPATH": str(Path(medseg.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_NETWORK, *map(str, arguments)],
        env=environment, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    new = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path not in before}
    assert new == {"output"}
    assert "1 masks written" in done.stderr


@pytest.mark.slow
def test_the_verb_writes_a_context(tmp_path):
    from medseg.cli.main import main as medseg_main

    model = write_model(tmp_path / "model")
    arguments = ["export", str(model), "--container", str(tmp_path / "image"), "--cuda", "--inputs", "mr"]
    assert medseg_main(arguments) == 0
    assert medseg_main(arguments) == 0
    assert json.loads((tmp_path / "image" / "challenge.json").read_text())["device"] == "cuda"
    assert "NVIDIA_VISIBLE_DEVICES" in (tmp_path / "image" / "Dockerfile").read_text()
    assert medseg_main(["export", str(model)]) == 2
