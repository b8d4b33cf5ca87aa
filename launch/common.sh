# shellcheck shell=bash
# What the scripts here share: options, --dry-run, and how a command is written out. To be sourced.
#
# Words are data: none is evaluated. What goes into arithmetic or a file that something else reads is checked before.
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
  local _known=() _name # no names that an option could have
  while [ "$1" != -- ]; do
    _known+=("$1")
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
        _name=${1#--}
        if ! [[ $_name =~ ^[a-z]+(-[a-z]+)*$ ]]; then wrong "unknown option $1"; fi
        if [[ " ${_known[*]} " == *" $_name! "* ]]; then
          printf -v "${_name//-/_}" 1
        elif [[ " ${_known[*]} " == *" $_name "* ]]; then
          if [ $# -lt 2 ]; then wrong "--$_name: a value is missing"; fi
          printf -v "${_name//-/_}" %s "$2"
          shift
        else
          wrong "unknown option $1; there are: $(printf -- '--%s ' "${_known[@]%!}")--dry-run. The run's command stands behind --"
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

whole() { # refuses the value $2 of --$1 unless it is a whole number of at least $3
  if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || [ "$2" -lt "$3" ]; then
    wrong "--$1 $(quoted "$2"): expected a whole number, at least $3"
  fi
}

plain() { # refuses the value $2 of --$1 unless it is made of the characters $3 and does not begin with -
  local pattern="^[$3]+\$"
  if ! [[ $2 =~ $pattern ]] || [[ $2 == -* ]]; then wrong "--$1 $(quoted "$2"): expected a word of the characters $3"; fi
}

quoted() { # words as a shell would read them
  local out=() word
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then out+=("$word"); else out+=("'${word//\'/\'\\\'\'}'"); fi
  done
  printf '%s\n' "${out[*]}"
}

run() { # a command; under --dry-run only its text
  if [ "$DRY" = 1 ]; then quoted "$@"; else "$@"; fi
}
