#!/bin/sh
# Environments of their own for the metric libraries medseg is compared with; medseg needs nothing of them.
#   benchmarks/setup_metric_peers.sh [FOLDER]        (default /tmp/metric_peers)
# One each: medpy is GPL, and what one library pins must not decide what another computes. MONAI and SimpleITK are medseg's
# own dependencies and are run from its environment, in processes of their own. A second call finds them made.
set -eu
folder=${1:-/tmp/metric_peers}
make_one() {
  name=$1
  shift
  if [ ! -f "$folder/$name/made" ]; then
    "${PYTHON:-python3}" -m venv "$folder/$name"
    "$folder/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
    touch "$folder/$name/made"
  fi
}
make_one surface_distance surface-distance==0.1 absl-py numpy==1.26.4 scipy==1.17.1
make_one medpy medpy==0.5.2 numpy==2.2.6 scipy==1.17.1
"$folder/surface_distance/bin/python" -c 'from importlib.metadata import version as v; print("surface-distance", v("surface-distance"), "scipy", v("scipy"))'
"$folder/medpy/bin/python" -c 'from importlib.metadata import version as v; print("medpy", v("medpy"), "scipy", v("scipy"))'
