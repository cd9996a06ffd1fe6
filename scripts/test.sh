#!/usr/bin/env bash
# Everything that has to hold: the package equals its notebooks, they are clean and run, the tests pass, the code is tidy.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh dev
export CUDA_VISIBLE_DEVICES= MPLBACKEND=agg

state() { cat simam_ema_fastai/*.py $(find nbs -name '*.ipynb' -not -path '*/.*' | sort) | sha1sum; }
before=$(state)
echo "== nbdev_export, nbdev_clean"
nbdev_export
nbdev_clean
if [ "$before" != "$(state)" ]; then
  echo "the package differed from its notebooks, or the notebooks were not clean; both are mended now: look at git diff" >&2
  exit 1
fi
echo "== ruff"
ruff check .
echo "== nbdev_test"
OMP_NUM_THREADS=1 nbdev_test --path nbs --n_workers 2 --timing  # one thread each on two cores
echo "== pytest"
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile "$@"
