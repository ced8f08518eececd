#!/bin/bash
# The nodes of one Slurm job as a Ray cluster, and one `reproduce run` on all of them:
#   sbatch examples/cluster/slurm.sh per --scale paper --store file:///shared/runs
# Submit it from a checkout that all nodes see, with `.venv` made by `make setup` and `pip install -e '.[ray]'`.
#SBATCH --job-name=reproduce
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"

export RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(.venv/bin/python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN # of this job alone: who has it may run code on its nodes

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head --lines=1)
address=$head:6379
gpus=${SLURM_GPUS_ON_NODE:-0}
common=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --disable-usage-stats --block)

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" .venv/bin/ray start --head --port=6379 --include-dashboard=false "${common[@]}" &
until .venv/bin/ray status --address="$address" > /dev/null 2>&1; do sleep 1; done
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        .venv/bin/ray start --address="$address" "${common[@]}" &
fi

# Slurm's TERM, two minutes before the end, reaches this shell: it asks the driver to write its checkpoints.
.venv/bin/reproduce run "$@" --engine ray --address "$address" &
driver=$!
trap 'kill -TERM "$driver"' TERM
code=0
wait "$driver" || code=$?
if kill -0 "$driver" 2> /dev/null; then # the signal ended the first wait
    code=0
    wait "$driver" || code=$?
fi
exit "$code"
