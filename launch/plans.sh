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
half="--config.model.dtype=bfloat16 --config.model.param_dtype=bfloat16"
vl="--batch-a-chip 64 $half --config configs/image_text.py:all,backbone"
clip="--batch-a-chip 32 $half --config configs/imagenet.py:$methods,seeds=1,protocols=few_shot,model"
for slices in v5e-8,v5e-256 v6e-16 v5p-8; do
  common="--topology $slices --train-only --twins --workdir $out"
  # shellcheck disable=SC2016 # the inner shell is to expand it
  printf '%s\n' \
    "$common/vit_b16 $clip=ViT-B/16" \
    "$common/vit_l14 $clip=ViT-L/14" \
    "$common/bart_base $vl=bart-base" \
    "$common/t5_base $vl=t5-base" |
    xargs -P "${JOBS:-2}" -I{} bash -c '${PYTHON:-python} -m vlmx.plan {} || [ $? = 1 ]' # 1: something does not fit
done
${PYTHON:-python} launch/plans.py "$out" >launch/plans.md
