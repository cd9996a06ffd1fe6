#!/usr/bin/env bash
# Known holes in everything that is installed with the package and its extras; to be run before a release, with a connection to the net.
# A package that could not be looked up counts as a failure. Arguments go to pip-audit, e.g. --vulnerability-service osv
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh "${EXTRA:-dev}"
uv pip install -q pip-audit
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
uv pip freeze --exclude-editable | sed 's/+[^ ;]*//' > "$requirements"  # without the local part of PyTorch's version, which no list knows
echo "asking about $(wc -l < "$requirements") packages"
python -m pip_audit --strict --no-deps --disable-pip --desc off -r "$requirements" "$@"
