"The service under load, see load_test.sh."
import contextlib
import json
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import requests
from fastcore.script import call_parse

from simam_ema_fastai.core import write_text
from simam_ema_fastai.experiments.environment import environment, provenance
from simam_ema_fastai.runtime.classifier import open_model

lua = Path(__file__).with_suffix('.lua')


class Service:
    "`simam_ema serve` in a process of its own."
    def __init__(self, model, *options):
        argv = [Path(sys.executable).with_name('simam_ema'), 'serve', str(model), '--port', '0', *map(str, options)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, said = [], ''
        while not (url := re.search(r'http://\S+', said)):
            if not (said := self.process.stdout.readline()): sys.exit(self.process.stderr.read())
        self.url = url[0]
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def rss(self, what='VmRSS') -> float: return int(re.search(rf'{what}:\s+(\d+)', Path(f'/proc/{self.process.pid}/status').read_text())[1])/1024

    def stop(self) -> dict:
        "What it says of itself after SIGTERM."
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        time.sleep(.2)
        return dict(json.loads(self.lines[-1]), status=status)


@contextlib.contextmanager
def serving(model, *options):
    s = Service(model, *options)
    try: yield s
    finally: s.process.kill(); s.process.wait()


def wrk(url, picture, clients, seconds) -> dict:
    r = subprocess.run(['wrk', '-t1', f'-c{clients}', f'-d{seconds}s', '--timeout', '60s', '-s', lua, f'{url}/predict'], capture_output=True, text=True, env=os.environ|{'PICTURE': str(picture)}, check=True)
    return json.loads(r.stdout.splitlines()[-1])


def bare(model, picture, bs, seconds) -> float:
    "Pictures a second without the service: decode, prepare and classify, `bs` at a time."
    n, start, data = 0, time.perf_counter(), picture.read_bytes()
    while (taken := time.perf_counter() - start) < seconds:
        model.probabilities(np.stack([model.prepare(data) for _ in range(bs)]))
        n += bs
    return n/taken


def under_load(service, picture, clients):
    "Stops the service while `clients` post without a pause; what they and it counted."
    data, tallies, halt = picture.read_bytes(), queue.Queue(), threading.Event()
    def client():
        answered = broken = 0
        with requests.Session() as session:
            while not halt.is_set():
                try: answered += session.post(f'{service.url}/predict', data=data, headers={'Content-Type': 'application/octet-stream'}, timeout=60).status_code == 200
                except requests.RequestException: broken += 1; break
        tallies.put((answered, broken))
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for t in threads: t.start()
    time.sleep(3)
    said = service.stop()
    halt.set()
    for t in threads: t.join()
    got = [tallies.get() for _ in threads]
    return dict(received=sum(a for a,_ in got), taken=said['taken'], answered=said['answered'], refused=sum(b for _,b in got), status=said['status'])


def made(folder:Path, arch:str, size:int, onnx:bool) -> Path:
    "An exported hybrid with initial weights: rates do not depend on their values."
    from simam_ema_fastai.data.dls import get_dls
    from simam_ema_fastai.deploy.load import export
    from simam_ema_fastai.training.learner import variant_learner
    from simam_ema_fastai.training.recipe import Recipe
    learn = variant_learner(get_dls('digits', n_train=64, n_valid=32, size=size), 'hybrid', arch=arch, weights=None, recipe=Recipe())
    path = export(learn, folder/'model')
    if not onnx: return path
    from simam_ema_fastai.deploy.onnx import to_onnx
    return to_onnx(learn, folder/'model.onnx')


@call_parse
def main(
    model:str=None, # Exported model; one with initial weights is made if left out
    picture:str=None, # Real picture to post; a photograph of scikit-learn's (640×427) if left out
    arch:str='resnet50', # Backbone of the model that is made
    size:int=224, # Side of its pictures
    onnx:bool=False, # Make an ONNX file of it
    seconds:int=15, # For each number of clients
    n:int=10_000, # Requests over which memory is watched
    out:str=None, # Where service.csv and report.md go; None: results/service_onnx or results/service_pytorch
):
    "The service under load: latency and rate against the bare model's, memory, overload, a stop in full flight."
    tmp = tempfile.TemporaryDirectory()
    if picture is None:
        from PIL import Image
        from sklearn.datasets import load_sample_image
        picture = Path(tmp.name)/'china.jpg'
        Image.fromarray(load_sample_image('china.jpg')).save(picture, quality=90)
    picture, model = Path(picture), model or made(Path(tmp.name), arch, size, onnx)
    kind = 'ONNX' if str(model).endswith('.onnx') else 'PyTorch'
    out = Path(out or f'results/service_{kind.lower()}')
    classifier, rows, told = open_model(model, trust=True), [], []
    options = ['--trust'] if str(model).endswith('.pkl') else []

    with serving(model, *options) as s:
        wrk(s.url, picture, 8, 2)
        for clients in (1, 8, 64):
            rate = bare(classifier, picture, min(clients, 32), seconds)
            r = wrk(s.url, picture, clients, seconds)
            rows.append(dict(clients=clients, rate=r['requests']/r['seconds'], bare=rate, share=r['requests']/r['seconds']/rate, p50=r['p50'], p95=r['p95'], p99=r['p99'], requests=r['requests'], failed=r['not_2xx'] + r['broken']))
            print(rows[-1], flush=True)
        sizes, done = [s.rss()], 0
        while done < n:
            done += wrk(s.url, picture, 16, max(1, seconds//3))['requests']
            sizes.append(s.rss())
        grown = sizes[-1] - sizes[len(sizes)//2]
        told.append(f'Memory over {done:,} requests: {sizes[0]:.0f} MiB before, {sizes[len(sizes)//2]:.0f} MiB half way, {sizes[-1]:.0f} MiB after; at most {s.rss("VmHWM"):.0f} MiB ever.')
        print(told[-1], flush=True)
    with serving(model, *options) as s: stop = under_load(s, picture, 16)
    told.append(f"SIGTERM under 16 clients: {stop['taken']} requests taken in, {stop['answered']} answered, {stop['received']} answers received; {stop['refused']} connections refused after it; exit status {stop['status']}.")

    with serving(model, *options, '--queue', 8, '--max-images', 1) as s:
        over = wrk(s.url, picture, 64, max(3, seconds//3))
        time.sleep(2)
        after = wrk(s.url, picture, 4, 2)
        said = s.stop()
    told.append(f"64 clients against --queue 8: {over['requests'] - over['not_2xx']} answered, {over['not_2xx']} refused with 503, {over['broken']} lost; then 4 clients: {after['requests']} answered, {after['not_2xx'] + after['broken']} refused or lost; exit status {said['status']}.")

    wrong = [f'{r["failed"]} of the requests of {r["clients"]} clients failed' for r in rows if r['failed']]
    if grown > 32: wrong.append(f'memory grew by {grown:.0f} MiB in the second half')
    if not stop['taken'] == stop['answered'] == stop['received'] or stop['status']: wrong.append('requests were lost at the stop')
    if not over['not_2xx'] or over['broken'] or after['not_2xx'] or after['broken']: wrong.append('overload was not refused, or not recovered from')
    df = pd.DataFrame(rows)
    env = environment()
    write_text(out/'service.csv', df.to_csv(index=False, float_format='%.4g'))
    table = '\n'.join(['| clients | pictures/s | bare model | share | p50 ms | p95 ms | p99 ms |', '|---:|---:|---:|---:|---:|---:|---:|',
                       *(f'| {r.clients} | {r.rate:.1f} | {r.bare:.1f} | {100*r.share:.0f}% | {r.p50:.1f} | {r.p95:.1f} | {r.p99:.1f} |' for r in df.itertuples())])
    write_text(out/'report.md', f'''# The service under load: {kind}

{table}

The bare model decodes, prepares and classifies the same picture in batches of as many as there are clients, 32 at most, in one process without a service, in turns with it. A request is a JPEG of {picture.stat().st_size/1024:.0f} KiB.

''' + '\n'.join(f'- {t}' for t in told) + f'''

Machine: {provenance(env)}; wrk, the service and the bare model share its cores. {classifier.source.replace(tmp.name + '/', '')}, Python {platform.python_version()}

    bash scripts/load_test.sh {' '.join(sys.argv[1:])}
''')
    print(f'{table}\n' + '\n'.join(told))
    if wrong: sys.exit('; '.join(wrong))
