"""docs/slurm/train.sh with stand-ins for SLURM's and medseg's commands."""

import signal
import subprocess

import pytest

from tests.stand_in_programs import StandIns

STAND_INS = {
    "srun": '#!/bin/bash\nshift\nexport SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0\nexec "$@"\n',
    "scontrol": '#!/bin/bash\nif [ "$1" = show ]; then echo node7; else echo "$@" >> "$OUT/scontrol"; fi\n',
    "medseg": """#!/bin/bash
echo "$@" > "$OUT/arguments"
echo "$RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $MASTER_PORT" > "$OUT/variables"
trap 'exit 143' USR1
touch "$OUT/started"
for _ in $(seq 200); do [ -e "$OUT/end" ] && exit "$(cat "$OUT/end")"; sleep 0.05; done
""",
}


@pytest.fixture
def job(tmp_path, repository):
    programs = StandIns(tmp_path, STAND_INS)
    environment = programs.environment | {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[7-8]"}
    process = subprocess.Popen(
        ["bash", str(repository / "docs/slurm/train.sh"), "--config", "a b.yaml"], env=environment
    )
    programs.wait_for("started")
    yield process, programs.out
    process.kill()
    process.wait()


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_handed_on_and_143_puts_the_job_back(job, signum):
    process, out = job
    process.send_signal(signum)
    assert process.wait(30) == 143
    assert (out / "scontrol").read_text() == "requeue 4711\n"
    assert (out / "arguments").read_text() == "train --config a b.yaml\n"
    assert (out / "variables").read_text() == "0 1 0 node7 24711\n"


@pytest.mark.parametrize("code", [0, 3])
def test_any_other_end_is_the_jobs_end(job, code):
    process, out = job
    (out / "end").write_text(str(code))
    assert process.wait(30) == code
    assert not (out / "scontrol").exists()
