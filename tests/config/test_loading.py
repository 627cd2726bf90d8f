import pytest

from medseg.config import load_config, save_config
from medseg.config.yaml12 import parse, scalar
from medseg.errors import ConfigError

GOOD = "name: x\ndata:\n  manifest: m.json\n"


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def faults(tmp_path, text, *overrides):
    with pytest.raises(ConfigError, match=r".") as caught:
        load_config(write(tmp_path, text), overrides)
    return caught.value.faults


def test_five_mistakes_are_reported_with_their_lines(tmp_path):
    text = """name: x
data:
  manifest: m.json
  fold: two
train:
  batchsize: 3
  optimiser:
    learning_rate: -1e-3
network:
  kind: unett
infer:
  mirror: true
  mirror: false
"""
    found = faults(tmp_path, text)
    assert len(found) == 5
    assert found == tuple(sorted(found, key=lambda fault: int(fault.split(":")[1])))
    by_line = {int(fault.split(":")[1]): fault for fault in found}
    assert set(by_line) == {4, 6, 8, 9, 13}
    assert "data.fold: is 'two'" in by_line[4]
    assert "train.batchsize: unknown key" in by_line[6]
    assert "learning_rate: is -0.001: input should be greater than 0" in by_line[8]
    assert "did you mean 'unet'?" in by_line[9]
    assert "is given twice (first on line 12)" in by_line[13]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("0012", 12), ("off", "off"), ("no", "no"), ("12:30", "12:30"), ("0o17", 15), ("true", True),
        ("~", None), ("", None), ("-.5", -0.5), ("1_000", "1_000"), ("2020-01-01", "2020-01-01"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_scalars_are_text():
    assert parse("a: '001'\nb: \"true\"").value == {"a": "001", "b": "true"}


def test_aliases_and_tags_are_refused():
    assert "aliases" in parse("a: &x [1]\nb: *x").faults[0][1]
    assert "tag" in parse("a: !!python/object:os.system x").faults[0][1]


def test_true_is_no_number_and_text_is_no_switch(tmp_path):
    found = faults(tmp_path, GOOD + "seed: true\ninfer:\n  mirror: yes\n")
    assert [fault.split(":")[1] for fault in found] == ["4", "6"]


def test_overrides_are_named_by_the_option(tmp_path):
    (fault,) = faults(tmp_path, GOOD, "train.budgett=3")
    assert fault.startswith("--set train.budgett: train.budgett: unknown key, did you mean 'budget'?")


def test_a_list_that_is_too_short_says_so(tmp_path):
    (fault,) = faults(tmp_path, GOOD, "prepare.spacing_xyz_mm=[1, 2]")
    assert "too few" in fault


def test_overrides_follow_the_same_scalar_rules(tmp_path):
    config = load_config(write(tmp_path, GOOD), ["train.optimiser.learning_rate=1e-4", "data.fold=null"])
    assert config.train.optimiser.learning_rate == 1e-4
    assert config.data.fold is None


def test_a_saved_config_reads_back_equal(tmp_path):
    config = load_config(write(tmp_path, GOOD), ["network.kind=dynunet", "evaluate.tolerance_mm={a: 1.0, b: 2.5}"])
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(("text", "fault"), [("", "is empty"), ("- 1", "holds no keys"), ("a: [", "no valid YAML")])
def test_files_that_are_no_config(tmp_path, text, fault):
    assert fault in faults(tmp_path, text)[0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path / "absent.yaml")


def test_a_cascade_has_a_first_stage(tmp_path):
    for section in ("configuration: 3d_cascade_fullres", "previous_work: low"):
        (fault,) = faults(tmp_path, f"{GOOD}prepare:\n  {section}\n")
        assert "3d_cascade_fullres and previous_work belong together; give both or neither" in fault
