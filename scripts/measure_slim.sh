#!/usr/bin/env bash
# What predicting from an ONNX file takes where nothing of this package's requirements is installed but onnxruntime, numpy and Pillow:
# size of the environment, and time from the command to the answer. Needs uv. Writes results/runtime/slim.md.
#     bash scripts/measure_slim.sh MODEL.onnx PICTURE
set -euo pipefail
model=$(realpath "$1") picture=$(realpath "$2")
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
uv venv -q "$venv"
uv pip install -q --python "$venv/bin/python" --no-deps .
uv pip install -q --python "$venv/bin/python" onnxruntime numpy pillow
cd "$venv" && PYTHONPATH='' bin/python - "$model" "$picture" > slim.md <<'P'
import resource, statistics, subprocess, sys, time
from importlib.metadata import distributions
from pathlib import Path
mb = lambda folder: sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file() and '__pycache__' not in f.parts)/1e6
def timed(*args):
    rows = []
    for _ in range(10):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(['bin/simam_ema', 'predict', *args], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows.append((time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return [statistics.median(r) for r in list(zip(*rows))], after.ru_maxrss/1024
(wall, cpu), peak = timed(*sys.argv[1:])
site = next(Path('lib').glob('python*/site-packages'))
print(f"""| what | value |
|---|---|
| packages | {', '.join(sorted(f'{d.name} {d.version}' for d in distributions()))} |
| size of site-packages | {mb(site):.0f} MB |
| of it this package | {mb(site/'simam_ema_fastai'):.2f} MB |
| command to answer, one picture, median of 10 | {wall:.2f} s, {cpu:.2f} s of CPU |
| largest memory | {peak:.0f} MiB |

    bash scripts/measure_slim.sh {Path(sys.argv[1]).name} {Path(sys.argv[2]).name}""")
P
mkdir -p "$OLDPWD/results/runtime"; cp slim.md "$OLDPWD/results/runtime/slim.md"; cat slim.md
