#!/usr/bin/env bash
# Several nodes with GPUs under Slurm, a process for each GPU:
#
#   launch/slurm.sh --nodes 2 --gpus 8 [--time 4:00:00] [--partition P] [--account A] [--name N] [--array 0-9]
#     [--dry-run] -- python -m vlmx.main --config configs/imagenet.py --workdir runs/imagenet
#
# Submits a job whose tasks find each other by --coordinator auto. Before the time is over, or where the job has to make
# room, the processes are told to stop, save, and leave with status 75; then the job queues itself again. --gpus 0: CPUs,
# a process for each node. --array: no coordinator is told; the command reads SLURM_ARRAY_TASK_ID (launch/sweep.py).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$here/common.sh"
nodes=1 gpus=1 time=4:00:00 partition='' account='' name=vlmx array=''
options nodes gpus time partition account name array -- "$@"
needed
whole nodes "$nodes" 1
whole gpus "$gpus" 0
plain time "$time" A-Za-z0-9:-
plain name "$name" A-Za-z0-9_.,:@+-
if [ -n "$partition" ]; then plain partition "$partition" A-Za-z0-9_.,:@+-; fi
if [ -n "$account" ]; then plain account "$account" A-Za-z0-9_.,:@+-; fi
if [ -n "$array" ]; then plain array "$array" 0-9,:%-; fi
if [ -z "$array" ]; then command+=(--coordinator auto); fi

script() {
  echo '#!/usr/bin/env bash'
  echo "#SBATCH --job-name=$name --nodes=$nodes --time=$time --requeue --open-mode=append --signal=B:TERM@120"
  if [ "$gpus" != 0 ]; then
    echo "#SBATCH --ntasks-per-node=$gpus --gpus-per-node=$gpus"
  else
    echo "#SBATCH --ntasks-per-node=1"
  fi
  if [ -n "$partition" ]; then echo "#SBATCH --partition=$partition"; fi
  if [ -n "$account" ]; then echo "#SBATCH --account=$account"; fi
  if [ -n "$array" ]; then echo "#SBATCH --array=$array"; fi
  # The shell of the job gets the signal (B:), and hands it to the tasks; a shell can only while it waits.
  cat <<END
export RETRIES=0
srun --kill-on-bad-exit=0 $(quoted "$here/start.sh" "${command[@]}") &
step=\$!
trap 'kill -TERM "\$step"' TERM
while true; do # a signal ends \`wait\`, and not the step
  wait "\$step"
  status=\$?
  kill -0 "\$step" 2>/dev/null || break
done
if [ "\$status" = 75 ] || [ "\$status" = 76 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$status"
END
}

if [ "$DRY" = 1 ]; then
  script
else
  script | sbatch
fi
