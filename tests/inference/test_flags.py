"""Where and how, from flags and the environment."""

import argparse

import pytest

from medseg.config.sections import InferSection
from medseg.config.series import SeriesSection
from medseg.errors import UsageError
from medseg.inference.flags import add_run_flags, asked_fields, device_name, given_path, refuse_file, run_options
from medseg.inference.shards import Shard


def parsed(*flags):
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    return parser.parse_args(flags)


def test_flags_become_options():
    options = run_options(
        parsed("--overwrite", "--shard", "1/2", "--memory", "1.5", "--isolate", "always"), InferSection()
    )
    assert (options.overwrite, options.shard, options.isolation) == (True, Shard(1, 2), "always")
    assert options.memory_bytes == 1_500_000_000


def test_nothing_said_is_the_whole_folder():
    options = run_options(parsed(), InferSection(), {"RANK": "0", "WORLD_SIZE": "2"})
    assert (options.overwrite, options.shard, options.memory_bytes, options.isolation) == (False, None, None, "auto")


@pytest.mark.parametrize("flags", [("--memory", "0"), ("--memory", "nan"), ("--isolate", "perhaps")])
def test_senseless_flags_are_refused(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed(*flags)
    assert "error" in capsys.readouterr().err


def test_each_process_of_a_machine_takes_its_own_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    under_torchrun = {"LOCAL_RANK": "3"}
    assert device_name(None, "auto", under_torchrun) == "cuda:1"
    assert device_name("cuda", "auto", under_torchrun) == "cuda:1"
    assert device_name("cpu", "auto", under_torchrun) == "cpu"
    assert device_name(None, "3/4", under_torchrun) is None
    assert device_name(None, "auto", {}) is None


def test_a_rule_for_series_needs_no_config():
    asked = asked_fields(parsed("--series", "modality=ct", "--series", "description=a=b, c", "--series", "most_slices"))
    assert asked == {"series": SeriesSection(modality="CT", description="a=b, c", most_slices=True)}
    assert asked_fields(parsed("--series", "code=1a2b3c4d")) == {"series": SeriesSection(code="1a2b3c4d")}
    asked = asked_fields(
        parsed("--series", "T1:description=a:b=c", "--series", "PET:modality=pt", "--series", "T1:most_slices")
    )
    assert asked == {
        "series": {"T1": SeriesSection(description="a:b=c", most_slices=True), "PET": SeriesSection(modality="PT")}
    }
    assert asked_fields(parsed()) == {}


@pytest.mark.parametrize(
    "said",
    [
        ["kernel=b30"],
        ["T1:modality=CT", "modality=CT"],
        ["T1:kernel=b30"],
        ["modality"],
        ["modality=c t"],
        ["description=("],
        ["code=a", "code=b"],
    ],
)
def test_what_is_no_rule_for_series_is_refused(said):
    with pytest.raises(UsageError, match=r"^--series: "):
        asked_fields(parsed(*(flag for one in said for flag in ("--series", one))))


def test_an_unset_variable_is_no_path():
    assert given_path("a b").name == "a b"
    for text in ("", " "):
        with pytest.raises(argparse.ArgumentTypeError, match="is empty, expected a path"):
            given_path(text)


def test_masks_go_into_a_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "odd.png").mkdir()
    refuse_file(tmp_path / "new")
    refuse_file(tmp_path / "odd.png")
    for name in ("file", "mask.nii.gz"):
        with pytest.raises(UsageError, match=rf"--output: is .*{name}, expected a folder, .*; give --output .*masks$"):
            refuse_file(tmp_path / name)


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "4 GB"])
def test_amounts_are_positive_numbers(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed("--memory", text)
    assert f"argument --memory: is {text}, expected a number above 0" in capsys.readouterr().err
