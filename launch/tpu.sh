#!/usr/bin/env bash
# Trains on a TPU slice of any number of hosts, from a machine with gcloud:
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu.sh --config=configs/imc_flickr.py --workdir=/mnt/runs/imc
#
# Change: TPU and ZONE (name and zone of a running slice), REPOSITORY (where this repository lies on every host, with its
# requirements and "jax[tpu]" installed), PYTHON (its interpreter there). --workdir and the data must lie on storage that all
# hosts mount. JAX finds the coordinator and the ranks of a slice by itself; XMR_DISTRIBUTED=auto says that it may.
#
# A slice that is preempted: create it again under its name and give the same command, which goes on from the last checkpoint.
set -euo pipefail

if [[ -z "${TPU:-}" || -z "${ZONE:-}" ]]; then
  echo "tpu.sh: error: TPU=NAME and ZONE=ZONE are needed before the command" >&2
  exit 2
fi

# Quoted twice: ssh hands the line to a shell on every host.
printf -v flags ' %q' "$@"
printf -v folder '%q' "${REPOSITORY:-xmr}"
printf -v python '%q' "${PYTHON:-python3}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd $folder && XMR_DISTRIBUTED=auto exec $python -m xmr.main$flags"
