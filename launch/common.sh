# shellcheck shell=bash
# What the scripts here share: options, --dry-run, and how a command is written out. To be sourced.
#
# `usage` prints the script's head. `options NAME... -- "$@"` sets a variable for each --name of NAMEs ("name" takes a
# value, "name!" none) and leaves what stands behind -- in the array `command`.
DRY=0
command=()

usage() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0" >&2
  exit 2
}

wrong() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

options() {
  local known=() name
  while [ "$1" != -- ]; do
    known+=("$1")
    shift
  done
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) DRY=1 ;;
      --help | -h) usage ;;
      --)
        shift
        command=("$@")
        return
        ;;
      --*)
        name=${1#--}
        if [[ " ${known[*]} " == *" $name! "* ]]; then
          printf -v "${name//-/_}" 1
        elif [[ " ${known[*]} " == *" $name "* ]]; then
          if [ $# -lt 2 ]; then wrong "--$name: a value is missing"; fi
          printf -v "${name//-/_}" %s "$2"
          shift
        else
          wrong "unknown option $1; there are: $(printf -- '--%s ' "${known[@]%!}")--dry-run. The run's command stands behind --"
        fi
        ;;
      *) wrong "unexpected $1; the run's command stands behind --" ;;
    esac
    shift
  done
}

needed() { # what a script cannot do without
  if [ ${#command[@]} = 0 ]; then wrong "the run's command is missing: -- python -m vlmx.main --config ..."; fi
}

quoted() { # words as a shell would read them
  local out=() word
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then out+=("$word"); else out+=("'${word//\'/\'\\\'\'}'"); fi
  done
  echo "${out[*]}"
}

run() { # a command; under --dry-run only its text
  if [ "$DRY" = 1 ]; then quoted "$@"; else "$@"; fi
}
