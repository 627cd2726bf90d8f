#!/bin/sh
# An environment of its own for nnU-Net 2.8.1, to compare with; medseg needs nothing of it.
#   benchmarks/setup_nnunet.sh [FOLDER]        (default /tmp/nnunet_env)
# A second call finds it made. PIP_INDEX_URL and the like work as always; the first time downloads PyTorch.
set -eu
folder=${1:-/tmp/nnunet_env}
if [ ! -x "$folder/bin/nnUNetv2_plan_experiment" ]; then
  "${PYTHON:-python3}" -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check nnunetv2==2.8.1
fi
"$folder/bin/python" -c 'from importlib.metadata import version as v; print("nnunetv2", v("nnunetv2"), "torch", v("torch"))'
