#!/usr/bin/env bash
# Renews the locked requirements that demo.sh, study.sh and test.sh install: the newest versions that settings.ini allows,
# for Python 3.10 to 3.13 on every platform. Needs uv. PyTorch's own companions (CUDA, Triton) are left to the torch that is
# installed: an index that offers another build of the same version, such as a CPU one, is not overruled.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "uv is needed: pip install uv" >&2; exit 2; }
for extra in demo dev; do
  locked=$(uv pip compile -q setup.py --extra "$extra" --universal --python-version 3.10 --no-annotate --no-header)
  { echo "# Written by bash scripts/lock.sh; what is allowed stands in settings.ini"
    grep -vE '^(nvidia-|cuda-|triton)' <<<"$locked"; } > "requirements/.$extra.tmp"
  mv "requirements/.$extra.tmp" "requirements/$extra.txt"
done
