"""What the README says is so: its commands parse, its paths exist, its tree is the tree, its example runs."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from medseg.cli.main import _VERBS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP_LEVEL_UNNAMED = {"__pycache__", "work", "build", "dist"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


def test_the_two_commands_are_the_first_two():
    assert commands()[:2] == [["./run", "demo"], ["./run", "check"]]
    assert (ROOT / "run").stat().st_mode & 0o111
    assert "check" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", [c for c in commands() if c[0] == "medseg"], ids=" ".join)
def test_command_uses_flags_that_its_verb_has(command: list[str], capsys: pytest.CaptureFixture[str]):
    verb = command[1]
    assert verb in _VERBS
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    known = capsys.readouterr().out
    for word in command[2:]:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", known), f"medseg {verb} has no {word}"
        elif word.startswith("configs/"):
            assert (ROOT / word).is_file()


def test_every_verb_is_in_the_readme_and_every_verb_there_exists():
    table = README.split("Around the four stages:")[1].split("\n## ")[0]
    named = {
        word
        for cell in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
        for word in re.findall(r"`(?:medseg )?([\w-]+)", cell)
    }
    assert named <= set(_VERBS)
    assert set(_VERBS) <= set(re.findall(r"[\w-]+", README))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "#")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_the_tree_that_are_named_exist(page: Path):
    named = re.findall(
        r"`((?:medseg|pipelines|configs|data_manifests|tests|docs|benchmarks)/[\w./-]*)`", page.read_text()
    )
    for path in named:
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def tree_lines() -> list[tuple[int, str]]:
    """(indent, first word) of the lines of the map."""
    (block,) = [block for block in blocks("") if "medseg/" in block]
    return [(len(line) - len(line.lstrip()), line.split()[0]) for line in block.splitlines()]


def test_the_map_is_the_tree():
    inside = {name.rstrip("/") for indent, name in tree_lines() if indent}
    rooms = {path.parent.name for path in (ROOT / "medseg").glob("*/__init__.py")} | {"errors.py"}
    assert inside == rooms
    top = {name.rstrip("/") for indent, name in tree_lines() if not indent} | {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "LICENSE",
    }
    there = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert top == there - TOP_LEVEL_UNNAMED


def test_every_dependency_has_its_reason():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[A-Za-z0-9_-]+", line)[0].lower() for line in declared}
    table = README.split("## Dependencies")[1].split("## Licence")[0]
    cells = re.findall(r"^\| ([\w, ]+) \|", table, re.MULTILINE)
    assert {name.strip().lower() for cell in cells for name in cell.split(",")} - {"package"} == names


def test_licence_is_the_one_that_is_named():
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def tiny_plan():
    from medseg.preparation.plan import ChannelPlan, Plan

    return Plan(
        dimensions=3,
        orientation="RAS",
        spacing_xyz_mm=(4.0, 4.0, 6.0),
        median_shape_xyz=(24, 24, 16),
        patch_size_xyz=(16, 16, 8),
        batch_size=1,
        channels=(ChannelPlan(name="MR", scheme="zscore"),),
        labels={"background": (0,), "organ": (1,), "duct": (2,)},
        features=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3), (3, 3, 3)),
        batch_dice=False,
        stored_dtype="float16",
        fingerprint_sha256="0" * 64,
    )


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import nibabel as nib
    import torch

    from medseg.cli.demo_scans import make_patient
    from medseg.inference.model import save_model
    from medseg.networks.build import build_network

    plan = tiny_plan()
    architecture = {"kind": "unet", "dimensions": 3, "channels": 1, "classes": 3}
    architecture |= {name: getattr(plan, name) for name in ("features", "strides", "kernel_sizes")}
    torch.manual_seed(0)
    save_model(
        tmp_path / "work/demo/runs/all/model",
        build_network(architecture),
        architecture=architecture,
        plan=plan,
        mirror_axes_xyz=(),
        config_text=(ROOT / "configs" / "demo.yaml").read_text(),
        training={},
    )
    patient = make_patient(24, seed=1)
    (tmp_path / "work/demo/data/images").mkdir(parents=True)
    nib.save(nib.Nifti1Image(patient.image, patient.affine), tmp_path / "work/demo/data/images/demo_024.nii.gz")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert str(patient.image.shape) in capsys.readouterr().out
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == patient.image.shape
    assert abs(mask.affine - patient.affine).max() < 1e-4
