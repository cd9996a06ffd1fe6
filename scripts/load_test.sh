#!/usr/bin/env bash
# The service under load: latency and rate against the bare model's, memory, overload, a stop in full flight. Takes wrk (Debian's package); options: --help.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v wrk >/dev/null || { echo "wrk is needed: apt-get install wrk" >&2; exit 2; }
. scripts/venv.sh dev
exec python scripts/load_test.py "$@"
