"""Every config and manifest that is shipped can be loaded, and says on its first line how to run it."""

import json
import shlex
from pathlib import Path

import pytest

from medseg.cli.schema import config_schema, main
from medseg.config import Config, load_config
from medseg.manifest import load_manifest

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MANIFESTS = sorted(path for path in (ROOT / "data_manifests").iterdir() if path.suffix in (".json", ".csv"))

# Made by `medseg demo`, beside its copy of the config.
MADE_LATER = {"demo"}


def test_the_promised_configs_are_there():
    assert {path.stem for path in CONFIGS} >= {"demo", "hippocampus", "nuclei", "sarcoma_pet", "sarcoma_mr"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_and_is_named_like_its_file(path: Path):
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_first_line_is_the_command(path: Path):
    first, *rest = path.read_text().splitlines()
    assert first.startswith("# ")
    words = shlex.split(first[2:])
    assert "medseg" in words
    if path.stem in MADE_LATER:
        return
    assert f"configs/{path.name}" in words
    assert "--data-root" in words
    assert any(line.startswith("# yaml-language-server: $schema=schema.json") for line in rest)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem not in MADE_LATER], ids=lambda path: path.stem)
def test_manifest_of_config_has_the_fold(path: Path):
    config = load_config(path)
    manifest = load_manifest(path.parent / config.data.manifest)
    assert config.data.fold is not None
    kept, held_out = manifest.fold_cases(config.data.fold)
    assert kept
    assert held_out
    assert not {case.patient for case in kept} & {case.patient for case in held_out}
    tolerance = config.evaluate.tolerance_mm
    assert not isinstance(tolerance, dict) or set(tolerance) <= set(manifest.class_names)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_shipped_manifest_loads(path: Path):
    manifest = load_manifest(path)
    assert manifest.training
    assert manifest.licence
    assert manifest.class_names[0] == "background"


def test_hippocampus_has_five_folds():
    manifest = load_manifest(ROOT / "data_manifests" / "hippocampus.json")
    assert {case.fold for case in manifest.training} == {0, 1, 2, 3, 4}


def test_shipped_schema_is_the_printed_one(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert printed == config_schema()
    shipped = ROOT / "configs" / "schema.json"
    assert shipped.read_text() == printed, "the config changed: run `medseg schema > configs/schema.json`"


def test_schema_describes_every_field_by_name_and_refuses_others():
    schema = json.loads(config_schema())
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    assert "What a bad case does" in schema["$defs"]["PrepareSection"]["properties"]["on_bad_case"]["description"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_saved_config_loads_to_the_same(path: Path, tmp_path: Path):
    from medseg.config import save_config

    config = load_config(path)
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config
