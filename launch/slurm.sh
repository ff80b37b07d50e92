#!/usr/bin/env bash
# One process a node, which drives all GPUs of the node:
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh configs/instant3d.py:pod /shared/runs/pod [--config.a.b=value ...]
# Options of sbatch stand before the script and replace those below; words after it go to launch.train. Submit from the checkout,
# with the environment of `python` active, or PYTHON=/path/to/python sbatch ...
#SBATCH --job-name=t3d
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail
usage='usage: sbatch --nodes=N --gpus-per-node=G [--time=H:MM:SS ...] launch/slurm.sh CONFIG WORKDIR [--config.a.b=value ...]'
fail() {
  printf 'error: %s\n%s\n' "$1" "$usage" >&2
  exit 2
}
[ $# -ge 2 ] || fail "CONFIG and WORKDIR are wanted after launch/slurm.sh, and $# words were given."
for word in "$1" "$2"; do
  case $word in
    '') fail 'CONFIG or WORKDIR is empty.' ;;
    -*) fail "CONFIG and WORKDIR are wanted before $word; options of sbatch stand before launch/slurm.sh." ;;
  esac
done
[ -n "${SLURM_JOB_ID:-}" ] || fail 'this is a job script: submit it with sbatch.'
python=${PYTHON:-python}
command -v "$python" >/dev/null || fail "there is no $python on $(hostname): activate the environment before sbatch, or set PYTHON."
config=$1 workdir=$2
shift 2
# SIGTERM arrives five minutes before the limit: every process saves at the same step and leaves with 0. Submit the same job
# again to go on. SLURM itself requeues after a failure of a node and after preemption alone; any other failure is requeued here,
# ten times at most, but for wrong input (status 2). srun takes no --cpus-per-task from sbatch (since 22.05).
status=0
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "$python" -m launch.train --distributed --config "$config" --workdir "$workdir" "$@" || status=$?
again=$((${SLURM_RESTART_COUNT:-0} + 1))
if [ "$status" -ne 0 ] && [ "$status" -ne 2 ] && [ "$again" -le 10 ]; then
  printf 'srun ended with status %s: the job is requeued, restart %s of 10\n' "$status" "$again" >&2
  scontrol requeue "$SLURM_JOB_ID" || printf 'error: not requeued: submit the same job again to go on\n' >&2
fi
exit "$status"
