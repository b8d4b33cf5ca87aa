#!/usr/bin/env bash
# The page of plans, launch/plans.md: every method that trains on ViT-B/16 and ViT-L/14, 32 images a chip, ImageNet's
# 1,000 classes; every VL-Adapter variant on BART-base and T5-base, 64 examples a chip of the four image-text tasks; in
# bfloat16.
#
#   launch/plans.sh [FOLDER]
#
# FOLDER (default runs/plans) keeps what is done: the command again goes on. JOBS (default 2) at a time. No TPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/plans}
methods=clip_adapter,taskres,tip_adapter_f,coop,xmadapter,vpt,ivlp,maple,promptsrc,apex,clip_lora,full,cocoop
clip=configs/imagenet.py:$methods,seeds=1,protocols=few_shot,model
vl=configs/image_text.py:all,backbone
# Words reach the command as they are: each plan is so many of them, with a null character behind each.
plan() {
  printf '%s\0' --workdir "$out/$1" --config "$2" --batch-a-chip "$3" --topology "$4" --train-only --twins \
    --config.model.dtype=bfloat16 --config.model.param_dtype=bfloat16
}
for slices in v5e-8,v5e-256 v6e-16 v5p-8; do
  # shellcheck disable=SC2016 # the inner shell is to expand it
  {
    plan vit_b16 "$clip=ViT-B/16" 32 "$slices"
    plan vit_l14 "$clip=ViT-L/14" 32 "$slices"
    plan bart_base "$vl=bart-base" 64 "$slices"
    plan t5_base "$vl=t5-base" 64 "$slices"
  } |
    # 1: something does not fit
    xargs -0 -n 12 -P "${JOBS:-2}" bash -c '"${PYTHON:-python}" -m vlmx.plan "$@" || [ $? = 1 ]' plan
done
"${PYTHON:-python}" launch/plans.py "$out" >launch/plans.md
