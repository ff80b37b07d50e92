#!/usr/bin/env bash
# Runs the same command on every host of a TPU VM slice:
#   launch/tpu_pod.sh NAME ZONE configs/instant3d.py:pod gs://bucket/runs/pod [--config.a.b=value ...]
# Needs gcloud, and the checkout at ~/t3d on every host with `pip install -e ".[tpu,gcs]"` done (add --setup to do it first).
set -euo pipefail
name=$1 zone=$2 config=$3 workdir=$4
shift 4
everywhere() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"; }
if [ "${1:-}" = --setup ]; then
  shift
  everywhere 'cd ~/t3d && python3 -m venv .venv && .venv/bin/pip install --quiet -e ".[tpu,gcs]"'
fi
everywhere "cd ~/t3d && .venv/bin/python -m launch.train --distributed --config '$config' --workdir '$workdir' $*"
