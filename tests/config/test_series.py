import pytest

from medseg.config.loading import load_config, save_config
from medseg.config.series import SeriesSection, rules_of_channels, told_apart
from medseg.errors import ConfigError

T1, FLAIR = SeriesSection(modality="MR", description="t1"), SeriesSection(modality="MR", description="flair")


def load(tmp_path, series):
    path = tmp_path / "c.yaml"
    path.write_text(f"name: x\ndata:\n  manifest: m.json\n  series: {series}\n")
    return load_config(path)


def test_one_rule_is_what_it_was(tmp_path):
    config = load(tmp_path, "{modality: MR, most_slices: true}")
    assert config.data.series == SeriesSection(modality="MR", most_slices=True)
    plain = {"modality": "MR", "description": None, "most_slices": True, "code": None}
    assert config.plain()["data"]["series"] == plain
    assert load(tmp_path, "null").plain()["data"]["series"] is None
    assert load(tmp_path, "{}").data.series == SeriesSection()


def test_a_rule_per_channel(tmp_path):
    config = load(tmp_path, "{T1: {modality: MR, description: t1}, FLAIR: {modality: MR, description: flair}}")
    assert config.data.series == {"T1": T1, "FLAIR": FLAIR}
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config
    # A channel may have the name of a field.
    assert load(tmp_path, "{modality: {code: 1a}}").data.series == {"modality": SeriesSection(code="1a")}


@pytest.mark.parametrize(
    ("series", "fault"),
    [
        ("{T1: {modality: MR, descripton: t1}}", "T1.descripton: unknown key, did you mean 'description'"),
        ("{modalty: MR}", "series.modalty: unknown key, did you mean 'modality'"),
        ("{T1: {modality: mr}}", "series.T1.modality: is 'mr': string should match pattern"),
        ("{T1: {description: '('}}", "series.T1: description is no regular expression"),
        ("{modality: MR, T1: {code: 1a}}", "series.modality: is 'MR'"),
        ("3", "data.series: is 3"),
    ],
)
def test_faults_name_the_key(tmp_path, series, fault):
    with pytest.raises(ConfigError, match=r"c\.yaml:4: data\.series") as caught:
        load(tmp_path, series)
    assert len(caught.value.faults) == 1
    assert fault in caught.value.faults[0]


def test_rules_go_to_their_channels():
    assert rules_of_channels(T1, ["a", "b"], key="data.series") == (T1, T1)
    assert rules_of_channels(None, ["a", "b"], key="data.series") == (None, None)
    assert rules_of_channels({"b": T1}, ["a", "b"], key="data.series") == (None, T1)
    with pytest.raises(
        ConfigError, match=r"^data.series: names the channels c, d, expected of a, b; correct the names$"
    ):
        rules_of_channels({"c": T1, "b": T1, "d": T1}, ["a", "b"], key="data.series")


def test_channels_share_a_folder_only_with_rules_of_their_own():
    assert told_apart([T1, FLAIR])
    assert not told_apart([T1, T1])
    assert not told_apart([T1, None])
