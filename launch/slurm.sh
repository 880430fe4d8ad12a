#!/usr/bin/env bash
# Trains on a Slurm cluster, one task per GPU; submit it from the repository:
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/imc_flickr.py --workdir=/shared/runs/imc
#
# Change: the #SBATCH lines below (partition, account, GPUs and CPUs per node, time) and the line that makes Python ready.
# --workdir must lie on a file system that all nodes see. XMR_PORT names another port, PYTHON the interpreter.
#
# Two minutes before the time is up, or when the job is preempted, the run saves and ends, and the job goes back into the
# queue under its number until results.json is there. A node that dies requeues it too, from the last checkpoint.
#SBATCH --job-name=xmr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=xmr-%j.log
set -euo pipefail

# source .venv/bin/activate

workdir=
for argument in "$@"; do
  case "$argument" in --workdir=*) workdir="${argument#*=}" ;; esac
done
if [[ -z "$workdir" ]]; then
  echo "slurm.sh: error: --workdir=DIR is missing" >&2
  exit 2
fi

coordinator=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export XMR_COORDINATOR="$coordinator:${XMR_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
export XMR_PROCESSES="$SLURM_NTASKS" PYTHON="${PYTHON:-python}"

stopping=
step=
# shellcheck disable=SC2329 # Called by the trap.
stop() {
  stopping=1
  if [[ -n "$step" ]]; then kill -TERM "$step" 2>/dev/null || true; fi
}
trap stop TERM USR1

# One task that fails ends the others. Each task picks its GPU by SLURM_LOCALID where it sees several.
# shellcheck disable=SC2016 # SLURM_PROCID is the task's own.
srun --kill-on-bad-exit=1 bash -c 'XMR_PROCESS=$SLURM_PROCID exec "$PYTHON" -m xmr.main "$@"' xmr "$@" &
step=$!
status=0
wait "$step" || status=$?
# A signal interrupts wait; the tasks go on until they have saved.
while kill -0 "$step" 2>/dev/null; do
  status=0
  wait "$step" || status=$?
done

if [[ -n "$stopping" && ! -e "$workdir/results.json" ]]; then
  echo "slurm.sh: job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
