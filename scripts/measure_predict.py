"""Measure `simam_ema predict MODEL FOLDER` over many images: memory, speed, and what is left after random kills.

    python scripts/measure_predict.py MODEL.onnx FOLDER --kills 5 --out results/runtime/predict.json

FOLDER may hold links. PYTHON names the environment that predicts, e.g. one with onnxruntime, numpy and Pillow alone."""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('model')
p.add_argument('folder')
p.add_argument('--out', default='results/runtime/predict.json')
p.add_argument('--kills', type=int, default=5)
p.add_argument('--bs', type=int, default=64)
args = p.parse_args()


def predicting(out):
    command = [os.environ.get('PYTHON', sys.executable), '-m', 'simam_ema_fastai', 'predict', args.model, args.folder]
    return subprocess.Popen([*command, '--bs', str(args.bs), '--out', out], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)


def memory(pid):
    "MiB of a process."
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    return int(next(l for l in lines if l.startswith('VmRSS')).split()[1])/1024


def undisturbed(out):
    "What an undisturbed run prints, the seconds it takes, and the largest memory in each tenth of them."
    seen, start, job = [], time.time(), predicting(out)
    while job.poll() is None:
        try: seen.append(memory(job.pid))
        except (OSError, StopIteration): break
        time.sleep(.25)
    line, seconds = job.communicate()[0].strip(), time.time() - start
    seen = seen[4:-1]  # without start and end
    bounds = [len(seen)*i//10 for i in range(11)]
    return line, seconds, [round(max(seen[a:max(b, a + 1)]), 1) for a, b in zip(bounds, bounds[1:])]


def killed(out, seconds):
    "Predict again, killed at random moments; how many times that was."
    kills, rng = 0, random.Random(0)
    while kills < args.kills:
        job = predicting(out)
        try: job.wait(rng.uniform(.05, .8)*seconds/max(1, args.kills/2))
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
            kills += 1
        else: break
    if not Path(out).exists(): predicting(out).wait()
    return kills


with tempfile.TemporaryDirectory() as d:
    line, seconds, tenths = undisturbed(f'{d}/whole.csv')
    kills = killed(f'{d}/killed.csv', seconds)
    whole, again = (Path(f'{d}/{name}.csv').read_bytes() for name in ('whole', 'killed'))
command = f'python scripts/measure_predict.py {Path(args.model).name} {Path(args.folder).name}'
result = dict(said=line.split(': ')[0] + line.partition('whole.csv')[2], seconds=round(seconds, 1),
              rss_mib_in_each_tenth=tenths, sigkills=kills, equal_to_undisturbed=again == whole,
              rows=whole.count(b'\n') - 1, command=f'{command} --kills {args.kills} --bs {args.bs}')
Path(args.out).parent.mkdir(parents=True, exist_ok=True)
Path(args.out).write_text(json.dumps(result, indent=2) + '\n')
print(json.dumps(result, indent=2))
sys.exit(not result['equal_to_undisturbed'])
