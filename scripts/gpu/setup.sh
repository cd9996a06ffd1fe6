#!/usr/bin/env bash
# On the bare machine: unpacks into WORK what has arrived in PACK, says what is still missing, and checks the whole when nothing is.
#   bash PACK/setup.sh PACK WORK
# Copy setup.sh, SHA256SUMS and some parts, run it, copy the next: parts that are unpacked may be deleted. Nothing outside WORK is touched.
# Exit status: 0 ready, 3 parts are missing, 2 something is wrong.
set -euo pipefail
[ $# = 2 ] || { sed -n 2,5p "$0" >&2; exit 2; }
[ -e "$1/SHA256SUMS" ] || { echo "setup: no SHA256SUMS in $1: a pack begins with it." >&2; exit 2; }
mkdir -p "$2/.unpacked"
pack=$1 work=$(cd "$2" && pwd) missing=
while read -r sum name; do
  [ -e "$work/.unpacked/$sum" ] && continue
  [ -e "$pack/$name" ] || { missing+=" $name"; continue; }
  sha256sum --status -c - <<< "$sum  $pack/$name" || { echo "setup: $name is damaged: copy it again." >&2; exit 2; }
  tar xzf "$pack/$name" -C "$work" --no-same-owner
  touch "$work/.unpacked/$sum"
  echo "unpacked $name"
done < "$pack/SHA256SUMS"
[ -z "$missing" ] || { echo "still missing:$missing"; exit 3; }
[ -e "$work/ready" ] || PYTHONPATH=$work/site SIMAM_EMA_HOME=$work/home MPLBACKEND=agg python3 "$work/queue/check.py" "$work"
touch "$work/ready"
echo "ready: python3 $work/queue/run_queue.py $work --minutes N --out OUT"
