#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]; GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS
# from the environment.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG [arguments of tools/train.py]" >&2; exit 2; }
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
# shellcheck disable=SC2086
exec srun -p "$partition" --job-name="$job" --gres=gpu:"$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
