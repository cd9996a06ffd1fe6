#!/usr/bin/env bash
# Everything that has to hold: the package equals its notebooks, they are clean and run, the tests pass, the code is tidy.
# Arguments go to pytest. LATEST=1 takes the newest versions of all requirements instead of the locked ones.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh dev
export CUDA_VISIBLE_DEVICES= MPLBACKEND=agg OMP_NUM_THREADS=1  # one thread in each of two processes
TMPDIR=$(mktemp -d) && export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT  # notebooks that end with their process leave gigabytes there

state() { find simam_ema_fastai nbs \( -name '*.py' -o -name '*.ipynb' \) -not -path '*/.*' | LC_ALL=C sort | xargs cat | cksum; }
before=$(state)
echo "== nbdev-export, nbdev-clean"
nbdev-export
nbdev-clean
if [ "$before" != "$(state)" ]; then
  echo "the package differed from its notebooks, or the notebooks were not clean; both are mended now: look at git diff" >&2
  exit 1
fi
echo "== ruff"
ruff check .
echo "== nbdev-test"
for part in nbs/*/; do nbdev-test "$part" --n-workers 2 --timing; done  # new processes for each wing: memory is given back
nbdev-test nbs --skip-folder-re . --n-workers 2 --timing
echo "== pytest"
python -m pytest -n 2 --dist loadfile "$@"
