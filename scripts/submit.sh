#!/usr/bin/env bash
# Submit a sweep as a job array, followed by a job that gathers its results. On the login node, in the project's
# environment:      PARTITION=gpu ACCOUNT=lab scripts/submit.sh experiment=table1
# After a failure, the same command submits the missing runs. dry_run=true only lists the runs. Settings without a variable
# below follow the experiment: hydra.launcher.qos=high hydra.launcher.constraint=h100 'hydra.launcher.setup=[module load cuda]'
set -euo pipefail

PARTITION=${PARTITION:-}   # empty: the cluster's default
ACCOUNT=${ACCOUNT:-}       # empty: your default
GPUS=${GPUS:-1}            # of one run; 0 for none
PROCESSES=${PROCESSES:-$((GPUS > 1 ? GPUS : 1))} # of one run, with a GPU each
CPUS=${CPUS:-8}            # of a process
MEMORY_GB=${MEMORY_GB:-64}
MINUTES=${MINUTES:-720}    # a run that takes longer is queued again, up to three times, and resumes where it stopped
RUNS=${RUNS:-results/runs} # a folder that all nodes can reach

launcher=("cpus_per_task=$CPUS" "mem_gb=$MEMORY_GB" "timeout_min=$MINUTES" "gpus_per_node=${GPUS/#0/null}"
    "tasks_per_node=$PROCESSES")
gather=(--parsable --job-name=gather "--output=$RUNS/.sweeps/gather-%j.log")
if [ -n "$PARTITION" ]; then
    launcher+=("partition=$PARTITION") gather+=("--partition=$PARTITION")
fi
if [ -n "$ACCOUNT" ]; then
    launcher+=("account=$ACCOUNT") gather+=("--account=$ACCOUNT")
fi

report=$(python -m harness -m hydra/launcher=slurm "${launcher[@]/#/hydra.launcher.}" "runs=$RUNS" "$@")
echo "$report" >&2
if [[ " $* " = *" dry_run=true "* ]]; then exit; fi
job=$(python -c 'import json, sys; print(json.loads(sys.argv[1])["job"] or "")' "${report##*$'\n'}")
if [ -n "$job" ]; then
    gather+=("--dependency=afterany:$job")
fi
mkdir -p "$RUNS/.sweeps" # missing if no run had to be submitted
gathered=$(sbatch "${gather[@]}" "$(dirname "$0")/gather.sbatch" "$RUNS")
echo "job ${gathered%%;*} gathers the results in $RUNS/.sweeps/gather-${gathered%%;*}.log and $RUNS/table.csv"
