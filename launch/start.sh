#!/usr/bin/env bash
# The one way in which everything here starts a process of a run:
#
#   launch/start.sh python -m vlmx.main --config configs/dtd.py --workdir runs/dtd
#
# The command again, as long as it was only interrupted: exit status 75 (told to stop, all is saved) or 76 (another
# process of the run is gone). RETRIES times at most (default 100), PAUSE seconds apart (default 10).
set -u
if [ $# = 0 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
if ! [[ ${RETRIES:-100} =~ ^[0-9]{1,9}$ && ${PAUSE:-10} =~ ^[0-9]{1,9}(\.[0-9]+)?$ ]]; then
  printf 'launch/start.sh: RETRIES is a whole number, PAUSE a number; got %q and %q\n' "${RETRIES:-}" "${PAUSE:-}" >&2
  exit 2
fi
stopped=0 child=
trap 'stopped=1 signalled=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
for ((i = 0; ; i++)); do
  "$@" &
  child=$! status=
  [ "$stopped" = 0 ] || kill -TERM "$child" # told so before there was a child to tell
  while true; do # a signal ends `wait`, and not the command, whose status is then still to be had
    signalled=0
    wait "$child" 2>/dev/null
    now=$?
    [ "$now" = 127 ] && [ -n "$status" ] || status=$now # 127: it had been had before
    [ "$signalled" = 1 ] || break
  done
  if [ "$status" != 75 ] && [ "$status" != 76 ]; then exit "$status"; fi
  if [ "$stopped" = 1 ] || [ "$i" -ge "${RETRIES:-100}" ]; then exit "$status"; fi
  echo "launch/start.sh: exit status $status, the same command again in ${PAUSE:-10} s" >&2
  sleep "${PAUSE:-10}"
  [ "$stopped" = 0 ] || exit "$status"
done
