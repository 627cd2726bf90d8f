"""One kill of each stage; ``kill_stages.py`` beside it does as many as one likes."""

import logging
import random

import pytest

from tests.experiment import write_experiment
from tests.reliability.kill_stages import kill_and_start_again, undisturbed_runs
from tests.reliability.stages import STAGES


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_a_write_and_started_again_every_stage_ends_in_the_same_bytes(tmp_path):
    made = write_experiment(tmp_path)
    seed = random.SystemRandom().randrange(10**6)
    logging.getLogger(__name__).info("seed %d", seed)
    faults = {}
    for stage, known in undisturbed_runs(made, tmp_path, list(STAGES)):
        kill = kill_and_start_again(stage, made, known, tmp_path, "write", random.Random(f"{seed} {stage.name}"))
        faults[stage.name] = kill.faults
    assert faults == dict.fromkeys(STAGES, ())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_command_takes_its_workers_and_its_sender_with_it(tmp_path):
    made = write_experiment(tmp_path)
    ((stage, known),) = undisturbed_runs(made, tmp_path, ["prepare"])
    assert kill_and_start_again(stage, made, known, tmp_path, "alone", random.Random(0)).faults == ()
