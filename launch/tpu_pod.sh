#!/usr/bin/env bash
# Runs the same command on every host of a TPU VM slice:
#   launch/tpu_pod.sh NAME ZONE configs/instant3d.py:pod gs://bucket/runs/pod [--setup] [--config.a.b=value ...]
# Needs gcloud, and the checkout at ~/t3d on every host with `pip install -e ".[tpu,gcs]"` done (--setup does it first).
set -euo pipefail
usage='usage: launch/tpu_pod.sh NAME ZONE CONFIG WORKDIR [--setup] [--config.a.b=value ...]'
fail() {
  printf 'error: %s\n%s\n' "$1" "$usage" >&2
  exit 2
}
[ $# -ge 4 ] || fail "NAME, ZONE, CONFIG and WORKDIR are wanted, and $# words were given."
for word in "$1" "$2" "$3" "$4"; do
  case $word in
    '') fail 'NAME, ZONE, CONFIG or WORKDIR is empty.' ;;
    -*) fail "NAME, ZONE, CONFIG and WORKDIR are wanted before $word." ;;
  esac
done
command -v gcloud >/dev/null || fail 'gcloud is not on the PATH: install the Google Cloud CLI.'
name=$1 zone=$2 config=$3 workdir=$4
shift 4
everywhere() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"; }
if [ "${1:-}" = --setup ]; then
  shift
  everywhere 'cd ~/t3d && python3 -m venv .venv && .venv/bin/pip install --quiet -e ".[tpu,gcs]"'
fi
# The words pass through a second shell on the hosts: %q keeps each as it is here.
everywhere "cd ~/t3d && .venv/bin/python -m launch.train --distributed $(printf '%q ' --config "$config" --workdir "$workdir" "$@")"
