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

from simam_ema_fastai.core.files import write_text
from simam_ema_fastai.experiments.environment import environment
from simam_ema_fastai.runtime.classifier import open_model

lua = Path(__file__).with_suffix('.lua')
raw = {'Content-Type': 'application/octet-stream'}


class Service:
    "`simam_ema serve` in a process of its own."
    def __init__(self, model, *options):
        command = Path(sys.executable).with_name('simam_ema')
        argv = [command, 'serve', str(model), '--port', '0', *map(str, options)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, said = [], ''
        while not (url := re.search(r'http://\S+', said)):
            if not (said := self.process.stdout.readline()): sys.exit(self.process.stderr.read())
        self.url = url[0]
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def memory(self, what='VmRSS') -> float:
        "In MiB."
        status = Path(f'/proc/{self.process.pid}/status').read_text()
        return int(re.search(rf'{what}:\s+(\d+)', status)[1])/1024

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


def wrk(url, image, clients, seconds) -> dict:
    argv = ['wrk', '-t1', f'-c{clients}', f'-d{seconds}s', '--timeout', '60s', '-s', lua, f'{url}/predict']
    r = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {'IMAGE': str(image)}, check=True)
    return json.loads(r.stdout.splitlines()[-1])


def bare_rate(model, image, bs, seconds) -> float:
    "Images per second without the service: decode, prepare and classify, `bs` at a time."
    n, start, data = 0, time.perf_counter(), image.read_bytes()
    while (taken := time.perf_counter() - start) < seconds:
        model.probabilities(np.stack([model.prepare(data) for _ in range(bs)]))
        n += bs
    return n/taken


def measure_rates(service, classifier, image, seconds) -> pd.DataFrame:
    "Latency and rate by number of clients, in turns with the bare model."
    wrk(service.url, image, 8, 2)
    rows = []
    for clients in (1, 8, 64):
        bare = bare_rate(classifier, image, min(clients, 32), seconds)
        r = wrk(service.url, image, clients, seconds)
        rate = r['requests']/r['seconds']
        times = {k: r[k] for k in ('p50', 'p95', 'p99')}
        rows.append(dict(clients=clients, rate=rate, bare=bare, share=rate/bare, **times, requests=r['requests'],
                         failed=r['not_2xx'] + r['broken']))
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def watch_memory(service, image, n, seconds) -> dict:
    "MiB before, half way through and after `n` requests."
    sizes, done = [service.memory()], 0
    while done < n:
        done += wrk(service.url, image, 16, max(1, seconds//3))['requests']
        sizes.append(service.memory())
    half, most = sizes[len(sizes)//2], service.memory('VmHWM')
    return dict(requests=done, before=sizes[0], half=half, after=sizes[-1], most=most)


def stop_under_load(service, image, clients) -> dict:
    "Stop the service while `clients` post without a pause; what they and it counted."
    data, tallies, halt = image.read_bytes(), queue.Queue(), threading.Event()
    def client():
        answered = refused = 0
        with requests.Session() as session:
            while not halt.is_set() and not refused:
                try: r = session.post(f'{service.url}/predict', data=data, headers=raw, timeout=60)
                except requests.RequestException: refused += 1
                else: answered += r.status_code == 200
        tallies.put((answered, refused))
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for t in threads: t.start()
    time.sleep(3)
    said = service.stop()
    halt.set()
    for t in threads: t.join()
    received, refused = map(sum, zip(*(tallies.get() for _ in threads)))
    return dict(received=received, refused=refused, **{k: said[k] for k in ('taken', 'answered', 'status')})


def overload(service, image, seconds) -> dict:
    "64 clients against a short queue, and then as many as it can take."
    over = wrk(service.url, image, 64, max(3, seconds//3))
    time.sleep(2)
    after = wrk(service.url, image, 4, 2)
    return dict(answered=over['requests'] - over['not_2xx'], refused=over['not_2xx'], lost=over['broken'],
                then_answered=after['requests'], then_failed=after['not_2xx'] + after['broken'],
                status=service.stop()['status'])


def made(folder:Path, arch:str, size:int, onnx:bool) -> Path:
    "An exported hybrid with initial weights: rates do not depend on their values."
    from simam_ema_fastai.data.dls import get_dls
    from simam_ema_fastai.deploy.load import export_bundle
    from simam_ema_fastai.deploy.onnx import to_onnx
    from simam_ema_fastai.training.learner import variant_learner
    from simam_ema_fastai.training.recipe import Recipe
    dls = get_dls('digits', n_train=64, n_valid=32, size=size)
    learn = variant_learner(dls, 'hybrid', arch=arch, weights=None, recipe=Recipe())
    return to_onnx(learn, folder/'model.onnx') if onnx else export_bundle(learn, folder/'model')


def photograph(folder:Path) -> Path:
    from PIL import Image
    from sklearn.datasets import load_sample_image
    Image.fromarray(load_sample_image('china.jpg')).save(folder/'china.jpg', quality=90)
    return folder/'china.jpg'


def wrong(rates, memory, stop, over) -> list[str]:
    failed = [f'{r.failed} of the requests of {r.clients} clients failed' for r in rates.itertuples() if r.failed]
    grown = memory['after'] - memory['half']
    if grown > 32: failed.append(f'memory grew by {grown:.0f} MiB in the second half')
    if not stop['taken'] == stop['answered'] == stop['received'] or stop['status']:
        failed.append('requests were lost at the stop')
    if not over['refused'] or over['lost'] or over['then_failed']:
        failed.append('overload was not refused, or not recovered from')
    return failed


report = '''# The service under load: {kind}

{table}

The bare model decodes, prepares and classifies the same image in batches of as many as there are clients, 32 at most,
in one process without a service, in turns with it. A request is a JPEG of {kib:.0f} KiB.

{lines}

Machine: {machine}

    bash scripts/load_test.sh {options}
'''
head = '''| clients | images/s | bare model | share | p50 ms | p95 ms | p99 ms |
|---:|---:|---:|---:|---:|---:|---:|'''
row = '| {clients:.0f} | {rate:.1f} | {bare:.1f} | {share:.0%} | {p50:.1f} | {p95:.1f} | {p99:.1f} |'
memory_line = ('- Memory over {requests:,} requests: {before:.0f} MiB before, {half:.0f} MiB half way, {after:.0f} MiB '
               'after; at most {most:.0f} MiB ever.')
stop_line = ('- SIGTERM under 16 clients: {taken} requests taken in, {answered} answered, {received} answers received; '
             '{refused} connections refused after it; exit status {status}.')
overload_line = ('- 64 clients against --queue 8: {answered} answered, {refused} refused with 503, {lost} lost; then 4 '
                 'clients: {then_answered} answered, {then_failed} refused or lost; exit status {status}.')


@call_parse
def main(
    model:str=None, # Exported model; one with initial weights is made if left out
    image:str=None, # Real image to post; a photograph of scikit-learn's (640×427) if left out
    arch:str='resnet50', # Backbone of the model that is made
    size:int=224, # Height and width of its images
    onnx:bool=False, # Make an ONNX file of it
    seconds:int=15, # For each number of clients
    n:int=10_000, # Requests over which memory is watched
    out:str=None, # Where service.csv and report.md go; None: results/service_onnx or results/service_pytorch
):
    "The service under load: latency and rate against the bare model's, memory, overload, a stop in full flight."
    tmp = tempfile.TemporaryDirectory()
    folder = Path(tmp.name)
    image, model = Path(image or photograph(folder)), model or made(folder, arch, size, onnx)
    classifier, options = open_model(model, trust=True), ['--trust'] if str(model).endswith('.pkl') else []
    with serving(model, *options) as s:
        rates = measure_rates(s, classifier, image, seconds)
        memory = watch_memory(s, image, n, seconds)
    with serving(model, *options) as s: stop = stop_under_load(s, image, 16)
    with serving(model, *options, '--queue', 8, '--max-images', 1) as s: over = overload(s, image, seconds)

    kind, env = 'ONNX' if str(model).endswith('.onnx') else 'PyTorch', environment()
    out = Path(out or f'results/service_{kind.lower()}')
    lines = '\n'.join([memory_line.format(**memory), stop_line.format(**stop), overload_line.format(**over)])
    table = '\n'.join([head, *(row.format(**r) for r in rates.to_dict('records'))])
    source, torch = classifier.source.replace(f'{folder}/', ''), env['packages'].get('torch')
    machine = (f"{env['cpu']}, {env['cores']} cores, which wrk, the service and the bare model share; {source}, torch "
               f"{torch}, Python {platform.python_version()}, commit {(env['commit'] or 'unknown')[:12]}")
    write_text(out/'service.csv', rates.to_csv(index=False, float_format='%.4g'))
    write_text(out/'report.md', report.format(kind=kind, table=table, kib=image.stat().st_size/1024, lines=lines,
                                              machine=machine, options=' '.join(sys.argv[1:])))
    print(f'{table}\n{lines}')
    if failed := wrong(rates, memory, stop, over): sys.exit('; '.join(failed))
