"""Any bytes as an image: never a crash, a hang or more than 1 GiB, and what is refused is named.

SIMAM_EMA_FUZZ=20000 tries longer."""
import json
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus import largest, readable, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='reads the peak of memory from /proc')

examples = int(os.environ.get('SIMAM_EMA_FUZZ', 400))
most_mib, most_seconds = 1024, 30


class Reader:
    "Reads images in a process of its own, which may crash, hang or eat memory."
    command = sys.executable, Path(__file__).with_name('reader.py')

    def __init__(self): self.process, self.worst, self.slowest, self.n = None, 0., 0., dict(read=0, refused=0)

    def start(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    def ask(self, data):
        "What the process answers; fails if it does not, or dies."
        self.process.stdin.write(struct.pack('<Q', len(data)) + data)
        self.process.stdin.flush()
        there = select.select([self.process.stdout], [], [], most_seconds)[0]
        answer = self.process.stdout.readline() if there else b''
        if not answer: self.close()
        assert there, f'no answer within {most_seconds} s'
        assert answer, 'the reader died'
        return json.loads(answer)

    def __call__(self, data):
        if self.process is None: self.start()
        start = time.time()
        answer = self.ask(data)
        assert answer['mib'] < most_mib
        if line := answer.get('refused'): assert line.startswith('the ') and len(line.splitlines()) == 1
        else: assert answer['mode'] == 'RGB' and min(answer['size']) > 0
        self.worst, self.slowest = max(self.worst, answer['mib']), max(self.slowest, time.time() - start)
        self.n['refused' if line else 'read'] += 1
        return answer

    def close(self):
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None


@pytest.fixture(scope='module')
def reader():
    r = Reader()
    yield r
    r.close()
    print(json.dumps(dict(r.n, most_mib=round(r.worst), slowest_s=round(r.slowest, 2))))


def test_known_kinds(reader):
    for name, data in {**readable, **largest}.items(): assert 'size' in (got := reader(data)), (name, got)
    for name, data in refused.items(): assert 'refused' in (got := reader(data)), (name, got)


small = [d for d in readable.values() if len(d) < 20_000]
numbers = st.sampled_from([b'\0', b'\xff', b'\x7f\xff\xff\xff', b'\xff\xff\xff\xff', b'\0\0\0\0', b'\xff\xff', b'\0\1',
                           b'\1\0\0\0', b'\0\0\xff\xff', b'\x80\0\0\0'])
edits = st.sampled_from(['cut', 'replace', 'replace', 'replace', 'insert', 'drop', 'splice'])


@st.composite
def damaged(draw):
    "An image with some bytes cut off, replaced, put in, or taken from another."
    data = draw(st.sampled_from(small))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(data), draw(st.sampled_from([64, 512, len(data)])))))
        new = draw(st.one_of(numbers, st.binary(min_size=1, max_size=8)))
        head, rest, edit = data[:at], data[at:], draw(edits)
        if edit == 'splice': data = head + draw(st.sampled_from(small))[at:]
        if edit == 'cut': data = head
        if edit == 'insert': data = head + new + rest
        if edit == 'replace': data = head + new + rest[len(new):]
        if edit == 'drop': data = head + rest[len(new):]
    return data


headed = st.builds(lambda d, n, b: d[:n] + b, st.sampled_from(small), st.integers(2, 30), st.binary(max_size=200))
any_bytes = st.one_of(damaged(), damaged(), damaged(), st.binary(max_size=200), headed)


@settings(max_examples=examples, deadline=None, derandomize=examples == 400, suppress_health_check=list(HealthCheck))
@given(any_bytes)
def test_any_bytes(reader, data): reader(data)


script = '''
import contextlib, io, sys
from pathlib import Path
from corpus import readable, refused
from reader import memory
from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.data.checks import find_unreadable
from simam_ema_fastai.data.dls import get_dls
from simam_ema_fastai.deploy.predict import predict_images
from simam_ema_fastai.training.learner import variant_learner
from simam_ema_fastai.training.recipe import Recipe

def one_line(e): return len(str(e).splitlines()) == 1
def reset_peak():
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')

folder = Path(sys.argv[1])
for name, data in {**readable, **refused}.items():
    (folder/'ab'[len(name)%2]).mkdir(parents=True, exist_ok=True)
    (folder/'ab'[len(name)%2]/name).write_bytes(data)
del data
files = sorted(folder.rglob('*.*'))
get_dls('digits', n_train=64, n_valid=10).one_batch()  # what PyTorch takes for itself
base = memory('VmRSS')
for loader in ('files', 'decoded'):
    reset_peak()
    how = dict(size=32, bs=8, loader=loader)
    try: get_dls('folder', folder, **how); raise SystemExit('not refused')
    except UserError as e: assert f'{len(refused) - 1} more images cannot be read either' in str(e) and one_line(e), e
    with contextlib.redirect_stdout(io.StringIO()) as said: dls = get_dls('folder', folder, skip_bad=True, **how)
    said = said.getvalue()
    assert f'{len(refused)} of {len(files)} images cannot be read and are left out' in said, said
    assert dls.loader == loader and len(dls.train_ds) + len(dls.valid_ds) == len(readable)
    for dl in dls: print(loader, sum(len(y) for _, y in dl), flush=True)
    print('MiB', memory('VmHWM') - base, flush=True)
bad = find_unreadable(files)
assert {Path(f).name for f in bad} == set(refused) and all(Path(f).name in why for f, why in bad.items())
learn = variant_learner(dls, 'baseline', arch='resnet18', weights=None, recipe=Recipe(epochs=1))
reset_peak()
good = [f for f in files if f.name in readable]
assert len(predict_images(learn, good, bs=8)) == len(good)
for f in files:
    if f.name in refused:
        try: predict_images(learn, f); raise SystemExit(f'{f} not refused')
        except UserError as e: assert f.name in str(e) and one_line(e), e
print('MiB', memory('VmHWM') - base)
'''


def test_folder_and_predict(tmp_path):
    "All of them in one folder, through both loaders and `predict_images`."
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = os.environ | dict(SIMAM_EMA_HOME=str(tmp_path/'home'), PYTHONPATH=path)
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', script, tmp_path/'images'],
                       capture_output=True, text=True, timeout=300, env=env)
    assert r.returncode == 0, r.stdout + r.stderr
    grown = [float(l.split()[1]) for l in r.stdout.splitlines() if l.startswith('MiB')]
    assert len(grown) == 3 and max(grown) < most_mib, grown
    print(r.stdout)
