#!/bin/bash
# Masks for many scans by an array of jobs on one output folder, each doing every n-th scan.
#
#   sbatch --array=0-7 docs/slurm/infer_array.sh SCANS --model MODEL --output masks
#   sbatch --array=0-7%2 docs/slurm/infer_array.sh --config configs/hippocampus.yaml --data-root DATA
#
# The array must have no gaps; where it starts does not matter (--array=1-8 is the same split). A task that is preempted, or
# that the machine kills, is put back into the queue, keeps the masks that are there and does the rest. When all have ended,
# report.jsonl and report.csv in the output folder have a line for every scan; the same command again does what is missing.
# 4 (some scans were refused) is no fault of the machine: such a task is not repeated.
#SBATCH --job-name=medseg-infer
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
#SBATCH --open-mode=append
#SBATCH --output=medseg-infer-%A-%a.log

set -u
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

medseg infer --shard auto "$@" &
infer=$!

# TERM is the job's end drawing near, or a preemption: what is being written is finished.
trap 'kill -TERM "$infer"' TERM

# `wait` returns early whenever a trap runs.
while :; do
    wait "$infer"
    code=$?
    kill -0 "$infer" 2>/dev/null || break
done

# 143: stopped by a signal. 137: killed, by the kernel for its memory as a rule; the scan that did it goes last then, and the
# job is not put back for ever.
if [ "$code" -eq 143 ] || { [ "$code" -eq 137 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; }; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
