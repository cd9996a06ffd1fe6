#!/usr/bin/env bash
# Everything that has to hold: the package equals its notebooks, they are clean and run, the tests pass, the code is tidy.
# Arguments go to pytest. LATEST=1 takes the newest versions of all requirements instead of the locked ones.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh dev
export CUDA_VISIBLE_DEVICES= MPLBACKEND=agg OMP_NUM_THREADS=1  # one thread in each of two processes
export PYTHONDONTWRITEBYTECODE=  # or each of some hundred processes compiles PyTorch and fastai anew
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
notebooks() { nbdev-test "$@" --n-workers 1 --timing; }
export -f notebooks
# two wings at a time, the largest first; new processes for each: memory is given back
{ du -s nbs/*/ | sort -rn | cut -f 2; echo nbs --skip-folder-re .; } | xargs -P 2 -I {} bash -c 'notebooks {}'
echo "== pytest"
python -m pytest -n 2 --dist loadfile "$@"
