#!/usr/bin/env bash
# Trains with several processes on this machine, one coordinator among them:
#
#   launch/local.sh --processes=2 --config=configs/imc_scenes.py --workdir=runs/scenes
#
# Change: --processes (default 2). With several GPUs, process i sees GPU i. PYTHON names the interpreter, XMR_PORT the port.
# One process that dies ends the others within a minute; the same command goes on from the last checkpoint.
# SIGTERM or Ctrl-C: all save the same step and exit with 0. The status is that of the first process that failed.
set -euo pipefail

processes=2
arguments=()
for argument in "$@"; do
  case "$argument" in
    --processes=*) processes="${argument#*=}" ;;
    *) arguments+=("$argument") ;;
  esac
done
if ! [[ "$processes" =~ ^[1-9][0-9]*$ ]]; then
  echo "local.sh: error: --processes=$processes; expected a number from 1" >&2
  exit 2
fi

python="${PYTHON:-python}"
port="${XMR_PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}"
export XMR_COORDINATOR="127.0.0.1:$port" XMR_PROCESSES="$processes"

gpus=0
if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi -L | wc -l); fi
declare -A running=()
for ((index = 0; index < processes; index++)); do
  if ((gpus >= processes)); then export CUDA_VISIBLE_DEVICES=$index; fi
  XMR_PROCESS=$index "$python" -m xmr.main ${arguments[@]+"${arguments[@]}"} &
  running[$!]=$index
done
# shellcheck disable=SC2329 # Called by the trap.
forward() { kill -TERM "${!running[@]}" 2>/dev/null || true; }
trap forward TERM INT

status=0
watchdog=
while ((${#running[@]})); do
  ended=
  code=0
  wait -n -p ended "${!running[@]}" || code=$?
  # A signal interrupts wait; the processes go on until they have saved.
  if [[ -z "$ended" ]]; then continue; fi
  index=${running[$ended]}
  unset "running[$ended]"
  if ((code != 0 && status == 0)); then
    status=$code
    if ((${#running[@]})); then
      echo "local.sh: error: process $index/$processes ended with status $code; the others stop" >&2
      # Those that wait for it in vain, as before the first step.
      (sleep 60 && kill -KILL "${!running[@]}") >/dev/null 2>&1 &
      watchdog=$!
    fi
  fi
done
if [[ -n "$watchdog" ]]; then
  pkill -P "$watchdog" 2>/dev/null || true
  kill "$watchdog" 2>/dev/null || true
fi
exit "$status"
