#!/bin/sh
# Every figure of inference that wants an idle machine, one after another; about two hours on 2 cores. What is made is kept.
#   benchmarks/inference_all.sh NNUNET_ENV WORK DATA RESULTS DATE
# NNUNET_ENV: of setup_nnunet.sh; DATA: with hippocampus/, sarcoma/ and nnunet/hippocampus_3d_fullres/; RESULTS: for the tables.
set -u
nnunet=$1 work=$2 data=$3 results=$4 date=$5
python=${PYTHON:-python}
mkdir -p "$work" "$results"
say() { printf '\n== %s (%s)\n' "$1" "$(date +%H:%M:%S)"; }

say "40 hippocampus scans and one"
"$python" benchmarks/bench_inference.py --peer-bin "$nnunet/bin" --model "$data/nnunet/hippocampus_3d_fullres" \
  --scans "$data/hippocampus/imagesTr" --labels "$data/hippocampus/labelsTr" --work "$work/speed_hippocampus" \
  --output "$results/inference_hippocampus_$date.md"
say "network at peak, both cores"
"$python" benchmarks/bench_network.py --model "$work/speed_hippocampus/model" --threads 2
say "two workers against one"
"$python" tests/reliability/cluster_faults.py --timing --output "$results/cluster_timing_$date.md"
say "200 cases, a worker killed, one frozen"
"$python" tests/reliability/cluster_faults.py --cases 200 --output "$results/cluster_$date.md"

say "nnU-Net's models"
make() { "$nnunet/bin/python" benchmarks/make_nnunet_models.py --work "$work/models" --data-root "$data" "$@"; }
make --only sarcoma_mr regions cascade --steps 100
make --only hippocampus_2d --steps 300 --most-batch 16
make --only hippocampus_3d --steps 100 --most-batch 2
say "masks beside nnU-Net's"
"$python" benchmarks/compare_nnunet_inference.py --work "$work/models" | tee "$results/nnunet_masks_$date.txt"
say "6 sarcoma MR scans"
sarcoma=$work/models/raw/Dataset805_Sarcoma
"$python" benchmarks/bench_inference.py --peer-bin "$nnunet/bin" \
  --model "$work/models/results/Dataset805_Sarcoma/nnUNetTrainer__sarcoma_mrPlans__3d_fullres" \
  --scans "$sarcoma/imagesTr" --labels "$sarcoma/labelsTr" --cases 6 --work "$work/speed_sarcoma" \
  --output "$results/inference_sarcoma_$date.md"

say "lighter models"
medseg=$(dirname "$(command -v "$python")")/medseg
small="--config configs/hippocampus.yaml --data-root $data/hippocampus --work $work/light --set train.budget.minutes=4"
# shellcheck disable=SC2086 - flags, one a word
for verb in prepare train distil; do "$medseg" $verb $small || exit; done
"$python" benchmarks/bench_exports.py --model "$(echo "$work"/light/runs/*/model)" --cases data_manifests/hippocampus.json \
  --data-root "$data/hippocampus" --held-out 0 --student "$(echo "$work"/light/distilled/*/model)" --threads 1 \
  --folder "$work/exports" | tee "$results/exports_$date.md"

say "512 x 512 x 400 voxels, 40 classes; the peer within 14 GiB of address space"
"$python" benchmarks/bench_large_scan.py | tee "$results/large_scan_$date.txt"
(ulimit -v 14680064 && "$python" benchmarks/bench_large_scan.py --only-peer --peer-python "$nnunet/bin/python") \
  | tee -a "$results/large_scan_$date.txt"
say "done"
