#!/usr/bin/env bash
# A TPU slice of Google Cloud, from renting to giving back (needs gcloud, logged in):
#
#   launch/tpu.sh create NAME --type v5litepod-16 --zone us-west4-a [--spot]   # now, or an error
#   launch/tpu.sh queue  NAME --type v5litepod-16 --zone us-west4-a [--spot]   # when there is one
#   launch/tpu.sh status NAME --zone us-west4-a                                # of what was queued
#   launch/tpu.sh setup  NAME --zone us-west4-a                                # copies this clone and installs it
#   launch/tpu.sh run    NAME --zone us-west4-a -- python -m vlmx.main --config configs/dtd.py --workdir /shared/dtd
#   launch/tpu.sh delete NAME --zone us-west4-a                                # ends the bill
#
# `run` starts the same command on every worker; it goes on by itself after a preemption signal (launch/start.sh). All
# take --project and --dry-run. The workdir must be storage that all workers share (Filestore, a mounted bucket). A deleted
# or preempted spot slice needs create, setup and run again; the run goes on where it was.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$here/common.sh"
if [ $# -lt 2 ] || [[ $1 == -* ]] || [[ $2 == -* ]]; then usage; fi
what=$1 tpu=$2
shift 2
type='' zone='' project='' spot=0 version=''
options type zone project spot! version -- "$@"
plain NAME "$tpu" A-Za-z0-9_.-
for option in type zone project version; do
  if [ -n "${!option}" ]; then plain "$option" "${!option}" A-Za-z0-9._:-; fi
done
if [ -z "$zone" ]; then wrong "--zone is missing, as in --zone us-west4-a"; fi
where=(--zone "$zone")
if [ -n "$project" ]; then where+=(--project "$project"); fi

slice() { # the options that create and queue share
  if [ -z "$type" ]; then wrong "--type is missing: v4-32, v5litepod-16, v5p-8, v6e-16, ..."; fi
  if [ -z "$version" ]; then
    case $type in
      v4-*) version="tpu-ubuntu2204-base" ;;
      v5litepod-*) version="v2-alpha-tpuv5-lite" ;;
      v5p-*) version="v2-alpha-tpuv5" ;;
      v6e-*) version="v2-alpha-tpuv6e" ;;
      *) wrong "--type $type: which software it needs is not known; give --version" ;;
    esac
  fi
}

vm() { run gcloud compute tpus tpu-vm "$@"; }
queued() { run gcloud compute tpus queued-resources "$@"; }

case $what in
  create)
    slice
    if [ "$spot" = 1 ]; then where+=(--spot); fi
    vm create "$tpu" "${where[@]}" --accelerator-type "$type" --version "$version"
    ;;
  queue)
    slice
    if [ "$spot" = 1 ]; then where+=(--spot); fi
    queued create "$tpu" --node-id "$tpu" "${where[@]}" --accelerator-type "$type" --runtime-version "$version"
    ;;
  status) queued describe "$tpu" "${where[@]}" ;;
  setup)
    archive=${TMPDIR:-/tmp}/vlmx.tar.gz
    run git -C "$here/.." archive --format tar.gz --prefix vlmx/ --output "$archive" HEAD
    vm scp "$archive" "$tpu": "${where[@]}" --worker all
    vm ssh "$tpu" "${where[@]}" --worker all --command \
      "tar -xzf vlmx.tar.gz && python3 -m venv env && env/bin/pip install -q ./vlmx 'jax[tpu]'"
    ;;
  run)
    needed
    vm ssh "$tpu" "${where[@]}" --worker all --command \
      "cd vlmx && PATH=~/env/bin:\$PATH launch/start.sh $(quoted "${command[@]}" --coordinator auto)"
    ;;
  delete)
    if [ "$DRY" = 1 ] || queued describe "$tpu" "${where[@]}" >/dev/null 2>&1; then
      queued delete "$tpu" "${where[@]}" --force --quiet # deletes its slice too
    fi
    if [ "$DRY" = 1 ] || vm describe "$tpu" "${where[@]}" >/dev/null 2>&1; then
      vm delete "$tpu" "${where[@]}" --quiet
    fi
    ;;
  *) usage ;;
esac
