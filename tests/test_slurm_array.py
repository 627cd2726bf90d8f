"""docs/slurm/infer_array.sh with stand-ins for SLURM's and medseg's commands."""

import signal
import subprocess

import pytest

from tests.stand_in_programs import StandIns

STAND_INS = {
    "scontrol": '#!/bin/bash\necho "$@" >> "$OUT/scontrol"\n',
    "medseg": """#!/bin/bash
echo "$@" > "$OUT/arguments"
trap 'exit 143' TERM
touch "$OUT/started"
for _ in $(seq 200); do [ -e "$OUT/end" ] && exit "$(cat "$OUT/end")"; sleep 0.05; done
""",
}


@pytest.fixture
def task(tmp_path, repository):
    """Starts one task of the array: restart count -> (process, its folder)."""
    programs, started = StandIns(tmp_path, STAND_INS), []

    def start(restarts):
        environment = programs.environment | {"SLURM_ARRAY_JOB_ID": "47", "SLURM_ARRAY_TASK_ID": "3"}
        script = str(repository / "docs/slurm/infer_array.sh")
        process = subprocess.Popen(
            ["bash", script, "a scan.nii", "--output", "masks"],
            env=environment | {"SLURM_RESTART_COUNT": restarts},
        )
        started.append(process)
        programs.wait_for("started")
        return process, programs.out

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_signal_ends_the_task_in_order_and_puts_it_back(task):
    process, out = task("0")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert (out / "arguments").read_text() == "infer --shard auto a scan.nii --output masks\n"
    assert (out / "scontrol").read_text() == "requeue 47_3\n"


@pytest.mark.parametrize(("code", "restarts", "requeued"), [(4, "0", False), (137, "0", True), (137, "3", False)])
def test_a_killed_task_is_put_back_and_one_with_refused_scans_is_not(task, code, restarts, requeued):
    process, out = task(restarts)
    (out / "end").write_text(str(code))
    assert process.wait(30) == code
    assert (out / "scontrol").exists() is requeued
