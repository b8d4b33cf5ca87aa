#!/usr/bin/env bash
# A TPU slice of a GKE cluster that has JobSet (jobset.sigs.k8s.io), with an image of launch/Dockerfile.tpu:
#
#   launch/gke.sh --topology v5e:4x4 --image REGISTRY/vlmx:tpu [--name vlmx] [--namespace default]
#     [--chips-a-host 4] [--dry-run] -- python -m vlmx.main --config configs/dtd.py --workdir /data/dtd
#
# Applies a JobSet with a pod for each host of the slice; --dry-run prints it. A pod whose process was told to stop or
# has lost another one (75, 76) starts its command again; a lost host restarts the set, and the run goes on where it
# was. The workdir must be storage that outlives a pod: add its volume to what --dry-run prints.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$here/common.sh"
topology='' image='' name=vlmx namespace=default chips_a_host=''
options topology image name namespace chips-a-host -- "$@"
needed
if [ -z "$image" ]; then wrong "--image is missing: build and push one of launch/Dockerfile.tpu"; fi
kind=${topology%%:*} shape=${topology#*:}
case $kind in
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice ;;
  *) wrong "--topology $topology: expected v4, v5e, v5p or v6e with a shape, as in v5e:4x4" ;;
esac
if ! [[ $shape =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]]; then wrong "--topology $topology: expected a shape, as in v5e:4x4"; fi
chips=$((${shape//x/*}))
each=${chips_a_host:-$((chips < 4 ? chips : 4))}
whole chips-a-host "$each" 1
plain name "$name" a-z0-9-
plain namespace "$namespace" a-z0-9-
plain image "$image" A-Za-z0-9._/:@-
if [ $((chips % each)) != 0 ]; then wrong "--chips-a-host $each does not divide the $chips chips of $topology"; fi
for word in "${command[@]}"; do
  if [[ ${word//[$'\n\r\t']/} == *[[:cntrl:]]* ]]; then wrong "a control character in $(quoted "$word")"; fi
done
hosts=$((chips / each))
if [ "$hosts" -gt 1 ]; then command+=(--coordinator auto); fi

list() { # a command as a list of JSON strings, which YAML reads; Kubernetes turns $(NAME) into a variable, $$ into $
  local word first=1
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//\$/\$\$}
    word=${word//$'\n'/\\n}
    word=${word//$'\r'/\\r}
    word=${word//$'\t'/\\t}
    if [ "$first" = 1 ]; then first=0; else printf ', '; fi
    printf '"%s"' "$word"
  done
}

yaml() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: "$name"
  namespace: "$namespace"
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
  replicatedJobs:
  - name: run
    replicas: 1
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $shape
            containers:
            - name: vlmx
              image: "$image"
              command: [$(list launch/start.sh "${command[@]}")]
              ports:
              - containerPort: 8471
              - containerPort: 8080
              resources:
                requests: {google.com/tpu: $each}
                limits: {google.com/tpu: $each}
END
}

if [ "$DRY" = 1 ]; then
  yaml
else
  yaml | kubectl apply -f -
fi
