#!/usr/bin/env bash
# What it takes to predict from an ONNX file where, besides this package, only onnxruntime, numpy and Pillow are installed:
# size of the environment, and time from the command to the answer. Needs uv. Writes results/runtime/slim.md.
#     bash scripts/measure_slim.sh MODEL.onnx IMAGE
set -euo pipefail
model=$(realpath "$1") image=$(realpath "$2")
cd "$(dirname "$0")/.."
root=$PWD venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
uv venv -q "$venv"
uv pip install -q --python "$venv/bin/python" --no-deps .
uv pip install -q --python "$venv/bin/python" onnxruntime numpy pillow
mkdir -p "$root/results/runtime"
cd "$venv"
PYTHONPATH='' bin/python - "$model" "$image" > slim.md <<'P'
import resource
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from statistics import median

def mb(folder):
    files = [f for f in Path(folder).rglob('*') if f.is_file() and '__pycache__' not in f.parts]
    return sum(f.stat().st_size for f in files)/1e6

def once():
    "Seconds of one command, and its seconds of CPU."
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(['bin/simam_ema', 'predict', *sys.argv[1:]], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

wall, cpu = (median(column) for column in zip(*[once() for _ in range(10)]))
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1024
packages = ', '.join(sorted(f'{d.name} {d.version}' for d in distributions()))
model, image = (Path(a).name for a in sys.argv[1:])
site = next(Path('lib').glob('python*/site-packages'))
print(f"""| what | value |
|---|---|
| packages | {packages} |
| size of site-packages | {mb(site):.0f} MB |
| of it this package | {mb(site/'simam_ema_fastai'):.2f} MB |
| command to answer, one image, median of 10 | {wall:.2f} s, {cpu:.2f} s of CPU |
| largest memory | {peak:.0f} MiB |

    bash scripts/measure_slim.sh {model} {image}""")
P
cp slim.md "$root/results/runtime/slim.md"
cat slim.md
