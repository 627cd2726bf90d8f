"""Paths: relative, inside the data root, and really there."""

import os

import pytest

from medseg.errors import ManifestError
from medseg.manifest import Case, Channel, Manifest, resolve
from medseg.manifest.paths import path_fault


def manifest_of(*images, labels=(), path=None):
    case = Case(id="a", patient="a", images=images, labels=labels)
    channels = tuple(Channel(name=f"c{i}") for i in range(len(images)))
    extra = {"path": path} if path else {}
    return Manifest(
        name="x", licence="y", channels=channels, labels={"background": (0,)}, training=(case,), **extra
    ), case


@pytest.mark.parametrize(
    "text", ["", " ", "/a", "//a", "C:/a", "a\\b", "http://x/a", "file:a", "a\0b", "a\nb", "x" * 2001]
)
def test_texts_that_are_no_relative_path(text):
    assert path_fault(text) is not None


@pytest.mark.parametrize("text", ["a.nii", "./a", "a/b c/d.nii.gz", "../a", "~a", "$HOME/a", "ü.png", "."])
def test_texts_that_are_relative_paths(text):
    assert path_fault(text) is None


def test_the_manifests_folder_is_the_root_by_default(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "series").mkdir()
    manifest, case = manifest_of("a.nii", "series", labels=("a.nii",), path=tmp_path / "m.json")
    found = resolve(manifest, case)
    assert found.images == (tmp_path / "a.nii", tmp_path / "series")
    assert found.labels == (tmp_path / "a.nii",)


def test_ways_out_of_the_root_are_refused_unless_allowed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "rootsibling").touch()
    (root / "link.nii").symlink_to(tmp_path / "rootsibling")
    (root / "folder").symlink_to(tmp_path)
    manifest, case = manifest_of("../rootsibling", "link.nii", "folder/rootsibling")
    with pytest.raises(ManifestError, match="leads out of the data root") as caught:
        resolve(manifest, case, root)
    assert len(caught.value.faults) == 3
    assert str(tmp_path) not in str(caught.value)
    assert resolve(manifest, case, root, allow_outside=True).images[1] == root / "link.nii"


def test_a_linked_root_and_links_inside_are_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.nii").touch()
    (tmp_path / "real" / "b.nii").symlink_to("a.nii")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    manifest, case = manifest_of("a.nii", "b.nii")
    assert resolve(manifest, case, tmp_path / "root").images[1] == tmp_path / "root" / "b.nii"


def test_absolute_paths_never_pass(tmp_path):
    manifest, case = manifest_of(str(tmp_path))
    with pytest.raises(ManifestError, match="is absolute"):
        resolve(manifest, case, tmp_path, allow_outside=True)


def test_missing_files_loops_and_pipes_are_all_told(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    manifest, case = manifest_of("none.nii", "pipe", labels=("loop",))
    with pytest.raises(ManifestError, match="is missing") as caught:
        resolve(manifest, case, tmp_path)
    assert len(caught.value.faults) == 3
    assert "no regular file" in caught.value.faults[1]
