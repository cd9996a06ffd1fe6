#!/usr/bin/env bash
# The whole runbook on this machine's CPU with three classes and a few images: pack, set up part by part in another Python,
# each part damaged once, kill the queue after an epoch and while it starts, run out of time, carry on in a second sitting
# on a second machine, merge, put the page together.
#   scripts/gpu/rehearse.sh FOLDER PYTHON [DATA]
# PYTHON has what image.txt lists (as far as fastai, torchvision and the package ask for it) and neither fastai nor the package;
# DATA: where Tiny ImageNet-200 lies. ONLY=speed,48 rehearses but some of the queue.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,8p "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
bin=$(dirname "$2") only=${ONLY:+--only $ONLY}
pack() { python "$here/pack.py" "$1" ${data:+--data "$data"} --tiny --image image.txt --python "$version" "${@:2}"; }
data=${3:-}
export CUDA_VISIBLE_DEVICES=
machine=(env -u PYTHONPATH -u SIMAM_EMA_HOME -u VIRTUAL_ENV PATH="$bin:/usr/bin:/bin")
version=$("${machine[@]}" python3 -c 'import platform; print(platform.python_version())')
"${machine[@]}" python3 -c 'import torch, torchvision' && ! "${machine[@]}" python3 -c 'import fastai' 2>/dev/null
"${machine[@]}" python3 -c 'from importlib.metadata import distributions as d; print("\n".join(sorted(f"{o.name}=={o.version}" for o in d())))' > image.txt
say() { echo "== $(date +%T) $*"; }

say "pack"
pack pack

say "one part at a time, the last first"
mkdir -p arrived; cp pack/setup.sh pack/SHA256SUMS arrived/
for part in $(awk '{print $2}' pack/SHA256SUMS | tac); do
  status=0; "${machine[@]}" bash arrived/setup.sh arrived work || status=$?; [ $status = 3 ]
  cp pack/$part arrived/; printf x >> arrived/$part
  status=0; "${machine[@]}" bash arrived/setup.sh arrived work || status=$?; [ $status = 2 ]
  cp pack/$part arrived/
done
"${machine[@]}" bash arrived/setup.sh arrived work
"${machine[@]}" bash arrived/setup.sh arrived work

say "in the background, killed after an epoch, and again while it starts"
setsid nohup "${machine[@]}" python3 work/queue/run_queue.py work --minutes 60 --out out1 --jobs 1 $only > /dev/null 2>&1 & pid=$!
until [ -n "$(find work/started -name history.csv 2>/dev/null)" ]; do kill -0 $pid; sleep .1; done
kill -9 $pid; wait $pid 2>/dev/null || true
sleep 1
if pgrep -f "$(cd work && pwd)/site/bin/simam_ema"; then echo "a training outlived the queue"; exit 1; fi
"${machine[@]}" python3 work/queue/run_queue.py work --minutes 60 --out out1 --jobs 1 $only & pid=$!
sleep 5; kill -9 $pid; wait $pid 2>/dev/null || true

say "until time is over"
"${machine[@]}" python3 work/queue/run_queue.py work --minutes "${MINUTES:-4}" --out out1 --jobs 1 $only
grep -rl "going on after epoch 1 of" work/logs
python "$here/merge.py" out1 runs --tables tables

say "a second machine, which is told what is done"
pack pack2 --runs runs
cmp pack/base-0.tar.gz pack2/base-0.tar.gz
"${machine[@]}" bash pack2/setup.sh pack2 work2
"${machine[@]}" python3 work2/queue/run_queue.py work2 --minutes 120 --out out2 --jobs 3 $only
mkdir -p results && cp -r out1 out2 results/
python "$here/merge.py" results runs --tables tables
python "$here/merge.py" results runs --tables tables   # twice is once
python "$here/page.py" runs tables --tiny
grep -A3 "What is missing" tables/README.md
say "done"
ls tables/*
