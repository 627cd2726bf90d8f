"""Where and how, from flags and the environment."""

import argparse

import pytest

from medseg.config.sections import InferSection
from medseg.inference.flags import add_run_flags, device_name, run_options
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
