"""How much memory `simam_ema predict MODEL FOLDER` takes over many pictures, how fast it is, and what is left after being killed at random moments.

    python scripts/measure_predict.py MODEL.onnx FOLDER --kills 5 --out results/runtime/predict.json

FOLDER may hold links. PYTHON chooses the environment that predicts, e.g. one with onnxruntime, numpy and Pillow alone."""
import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('model'); p.add_argument('folder'); p.add_argument('--out', default='results/runtime/predict.json')
p.add_argument('--kills', type=int, default=5)
p.add_argument('--bs', type=int, default=64)
a = p.parse_args()
python = os.environ.get('PYTHON', sys.executable)

def start(out):
    return subprocess.Popen([python, '-m', 'simam_ema_fastai', 'predict', a.model, a.folder, '--bs', str(a.bs), '--out', out], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

def rss(pid): return int(next(l for l in open(f'/proc/{pid}/status') if l.startswith('VmRSS')).split()[1])/1024

with tempfile.TemporaryDirectory() as d:
    begun, seen, job = time.time(), [], start(f'{d}/whole.csv')
    while job.poll() is None:
        try: seen.append(rss(job.pid))
        except (OSError, StopIteration): break
        time.sleep(.25)
    said, seconds = job.communicate()[0].strip(), time.time() - begun
    seen = seen[4:-1]  # without start and end
    tenths = [max(seen[len(seen)*i//10:max(len(seen)*(i + 1)//10, len(seen)*i//10 + 1)]) for i in range(10)]
    kills, rng = 0, random.Random(0)
    while kills < a.kills:
        job = start(f'{d}/killed.csv')
        try: job.wait(rng.uniform(.05, .8)*seconds/max(1, a.kills/2))
        except subprocess.TimeoutExpired: job.send_signal(signal.SIGKILL); job.wait(); kills += 1
        else: break
    if not Path(f'{d}/killed.csv').exists(): start(f'{d}/killed.csv').wait()
    digest = lambda f: hashlib.sha256(Path(f).read_bytes()).hexdigest()
    result = dict(said=said.split(': ')[0] + said.partition('whole.csv')[2], seconds=round(seconds, 1), rss_mib_in_each_tenth=[round(t, 1) for t in tenths], sigkills=kills,
                  equal_to_undisturbed=digest(f'{d}/killed.csv') == digest(f'{d}/whole.csv'), rows=sum(1 for _ in open(f'{d}/whole.csv')) - 1,
                  command=f"python scripts/measure_predict.py {Path(a.model).name} {Path(a.folder).name} --kills {a.kills} --bs {a.bs}")
Path(a.out).parent.mkdir(parents=True, exist_ok=True)
Path(a.out).write_text(json.dumps(result, indent=2) + '\n')
print(json.dumps(result, indent=2))
sys.exit(not result['equal_to_undisturbed'])
