#!/bin/bash
# Trains one config on one or several GPUs, and goes on by itself when the job's time is over.
#
#   sbatch docs/slurm/train.sh --config configs/hippocampus.yaml --data-root DATA
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 docs/slurm/train.sh --config ...
#
# 120 s before its end the job gets SIGUSR1 and hands it on: training finishes its step, saves and exits 143, and the job is
# put back into the queue. The same command then goes on where it stopped, also with another number of GPUs.
#SBATCH --job-name=medseg
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=medseg-%j.log

set -u
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
hosts="${SLURM_JOB_NODELIST:-}"
if command -v scontrol >/dev/null && [ -n "$hosts" ]; then
    MASTER_ADDR="$(scontrol show hostnames "$hosts" | head -n 1)"
else
    MASTER_ADDR=127.0.0.1
fi
export MASTER_ADDR
export MASTER_PORT="$((20000 + ${SLURM_JOB_ID:-0} % 20000))"

# One process a task; the variables are those torchrun sets. srun hands signals to every task and ends with the highest
# exit code of them. exec: the signal has to reach medseg, not a shell in between.
srun --kill-on-bad-exit=1 bash -c \
    'export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS" LOCAL_RANK="$SLURM_LOCALID"; exec medseg train "$@"' \
    medseg "$@" &
training=$!

# USR1 is the job's end drawing near, TERM a preemption. srun passes USR1 on to every task.
trap 'kill -USR1 "$training"' USR1
trap 'kill -USR1 "$training"' TERM

# `wait` returns early whenever a trap runs.
while :; do
    wait "$training"
    code=$?
    kill -0 "$training" 2>/dev/null || break
done

if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
