#!/usr/bin/env bash
# The GPU kernels on an NVIDIA GPU, one command: parity with float64, gradients, CUDA graphs, torch.compile; then timings
# against the bytes they have to move. Needs Python with torch, triton, numpy and pandas (PYTHON names it), nothing else.
# OUT sets the folder of the results; arguments go on to gpu_check.py, see --help.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
exec "$python" scripts/gpu_check.py --out "${OUT:-results/gpu_check}" "$@"
