#!/usr/bin/env bash
# The study itself, for a machine with a GPU: ResNet-50 on Tiny ImageNet-200 at 224 pixels, 20 epochs, four variants
# and hybrid_all. WEIGHTS is 'imagenet' (torchvision's) unless set, e.g. to 'npm'; DATA is where Tiny ImageNet lies, or
# empty to have it downloaded. Interrupted, the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh demo
simam_ema ablate --data tiny_imagenet ${DATA:+--path "$DATA"} --size 224 --arch resnet50 --weights "${WEIGHTS:-imagenet}" \
  --variants baseline,simam,ema,hybrid,hybrid_all --epochs 20 --out "${OUT:-runs/study}"
