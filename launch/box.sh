#!/usr/bin/env bash
# One machine, all its devices:
#
#   launch/box.sh [--processes N] [--port P] [--dry-run] -- python -m vlmx.main --config configs/dtd.py
#
# One process drives all GPUs, which is simplest and usually best. --processes N starts N of them, a GPU each; where
# there are no GPUs, each has the CPU. Their output goes to box.0.log, box.1.log, ... in the folder LOGS (default .).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$here/common.sh"
processes=1 port=12355
options processes port -- "$@"
needed
whole processes "$processes" 1
whole port "$port" 0
if [ "$processes" = 1 ]; then
  run "$here/start.sh" "${command[@]}"
  exit
fi

children=()
for ((i = 0; i < processes; i++)); do
  one=(env "CUDA_VISIBLE_DEVICES=$i" "$here/start.sh" "${command[@]}" --coordinator "localhost:$port")
  one+=(--processes "$processes" --process "$i")
  if [ "$DRY" = 1 ]; then
    printf '%s\n' "$(quoted "${one[@]}") >$(quoted "${LOGS:-.}/box.$i.log") 2>&1 &"
    continue
  fi
  "${one[@]}" >"${LOGS:-.}/box.$i.log" 2>&1 &
  children+=($!)
done
if [ "$DRY" = 1 ]; then exit; fi
trap 'kill -TERM "${children[@]}" 2>/dev/null' TERM INT
worst=0
for child in "${children[@]}"; do
  status=0
  while true; do # a signal ends `wait`, and not the process
    wait "$child" && status=0 || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  if [ "$status" -gt "$worst" ]; then worst=$status; fi
done
if [ "$worst" != 0 ]; then tail -n 5 -- "${LOGS:-.}"/box.*.log >&2; fi
exit "$worst"
