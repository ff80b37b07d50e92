#!/usr/bin/env bash
# One process per node (all its GPUs); JAX reads SLURM's variables. Submit with
#   sbatch --nodes 4 --gpus-per-node 8 launch/slurm.sh configs/instant3d.py:pod /shared/runs/pod [--config.a.b=value ...]
#SBATCH --job-name=t3d
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
config=$1 workdir=$2
shift 2
# SIGTERM arrives two minutes before the limit: every process saves at the same step and leaves with 0. Submit the same job
# again to go on; a node failure requeues it by itself.
srun --kill-on-bad-exit=1 python -m launch.train --distributed --config "$config" --workdir "$workdir" "$@"
