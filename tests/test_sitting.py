"""A sitting on a bare GPU machine, rehearsed on the CPU: pack, copy, work, be killed, go on, merge.

Three classes of real digits stand in for Tiny ImageNet-200, and a plan of tiny commands for the study's."""
import fcntl
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from simam_ema_fastai.core.downloads import unpack_tar
from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.models.weights import Weights

tiny_plan = '''
def train(variant): return ('train --out {out} --size 32 --n-train 32 --n-valid 30 --epochs 2 --freeze-epochs 1 '
    '--bs 16 --arch resnet18 --weights none --data tiny_imagenet --path {data} --no-report --variant ' + variant)

stages = [Stage('kernels', {'simam': check('--rehearse --kernels simam')}, 600),
          Stage('study', {'baseline-s1': train('baseline'), 'hybrid-s1': train('hybrid')}, 900, 2, 1, True)]
'''


@pytest.fixture(scope='module')
def gpu(root):
    "A script of scripts/gpu as a module."
    def load(name):
        spec = importlib.util.spec_from_file_location(f'gpu_{name}', root/'scripts'/'gpu'/f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return load


@pytest.fixture(scope='module')
def stand_in(tmp_path_factory):
    "A folder laid out as Tiny ImageNet-200 is, of 500 training images of each of three digits."
    folder, digits, names = tmp_path_factory.mktemp('tiny'), load_digits(), ('n0', 'n1', 'n2')
    (folder/'wnids.txt').write_text('\n'.join(names))
    (folder/'words.txt').write_text('\n'.join(f'{n}\tdigit {n[1:]}' for n in names))
    (folder/'val'/'images').mkdir(parents=True)
    rows = []
    for digit, n in enumerate(names):
        (folder/'train'/n/'images').mkdir(parents=True)
        encoded = []
        for im in digits.images[digits.target == digit]:
            Image.fromarray((im*255/16).astype(np.uint8)).resize((64, 64)).save(b := io.BytesIO(), 'JPEG')
            encoded.append(b.getvalue())
        for i in range(500): (folder/'train'/n/'images'/f'{n}_{i}.JPEG').write_bytes(encoded[i % 150])
        for i, b in enumerate(encoded[150:160]):
            (folder/'val'/'images'/f'val_{n}_{i}.JPEG').write_bytes(b)
            rows.append(f'val_{n}_{i}.JPEG\t{n}\t0\t0\t62\t62')
    (folder/'val'/'val_annotations.txt').write_text('\n'.join(rows))
    return folder


@pytest.fixture(scope='module')
def packed(root, gpu, stand_in, tmp_path_factory):
    "The parts, with tiny weights and commands, and no wheels."
    tmp, pack = tmp_path_factory.mktemp('pack'), gpu('pack')
    (tmp/'plan.py').write_text((root/'scripts'/'gpu'/'plan.py').read_text() + tiny_plan)
    pack.load_weights = lambda source, arch: Weights({'conv': torch.ones(2, 2), 'norm': torch.ones(2)}, arch, source)
    pack.pack(tmp/'pack', stand_in, tmp/'plan.py', wheels=False)
    with pytest.raises(UserError, match='larger than 0.001 MB: it cannot be copied'):
        pack.pack(tmp/'small', stand_in, tmp/'plan.py', wheels=False, mb=.001)
    return tmp/'pack'


def sitting(pack, work, *args):
    "The script as it runs there, in a machine that knows nothing of this package."
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'SIMAM_EMA_HOME')}
    command = [sys.executable, pack/'sitting.py', pack, work, work.parent/'out', *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def test_a_sitting_to_the_end(gpu, packed, tmp_path):
    arrived, work, out = (tmp_path/n for n in ('arrived', 'work', 'out'))
    arrived.mkdir()
    def copy(*names):
        for n in names: shutil.copy(packed/n, arrived)
    def ends(*args):
        p = sitting(arrived, work, *args)
        text, _ = p.communicate()
        return p.returncode, text
    copy('sitting.py', 'parts.json')
    assert ends(900) == (3, "not here yet: ['base.tar.gz', 'data-0.tar.gz', 'data-1.tar.gz', 'data-2.tar.gz']; "
                            "damaged, to be copied again: []\n")
    copy('base.tar.gz', 'data-0.tar.gz', 'data-2.tar.gz')  # what needs no data is done while the rest is missing
    status, text = ends(900)
    assert status == 3 and "not here yet: ['data-1.tar.gz']" in text and 'kernels/simam: status 0' in text, text
    assert 'study' not in text
    (arrived/'data-1.tar.gz').write_bytes((packed/'data-1.tar.gz').read_bytes()[:-1])
    status, text = ends(900)
    assert (status, text) == (2, "not here yet: []; damaged, to be copied again: ['data-1.tar.gz']\n")
    copy('data-1.tar.gz')

    p = sitting(arrived, work, 900)  # killed after an epoch: nothing of it lives on
    while not any(len(f.read_text().splitlines()) > 1 for f in (work/'steps').rglob('history.csv')):
        assert p.poll() is None, p.communicate()
        time.sleep(.05)
    p.kill()
    p.communicate()
    time.sleep(.5)
    before = {f: f.stat().st_mtime_ns for f in (work/'steps').rglob('*')}
    time.sleep(1)
    assert before == {f: f.stat().st_mtime_ns for f in (work/'steps').rglob('*')}
    status, text = ends(900)
    assert status == 0 and 'kernels' not in text and text.count('status 0') == 2, text
    assert any('going on after epoch' in f.read_text() for f in (work/'steps').rglob('log.txt'))
    shutil.rmtree(out)
    assert ends(900) == (0, '')  # all is done, and the results come once more
    with tarfile.open(out/'results.tar.gz') as tar: names = tar.getnames()
    assert not [n for n in names if n.endswith(('.pth', '.pkl', '.safetensors'))] and 'commit.txt' in names

    merge, results, runs, tables = gpu('merge').merge, tmp_path/'results', tmp_path/'runs', tmp_path/'tables'
    shutil.copytree(out, results/'1')
    merge(results, runs, tables)
    names = {'baseline-uniform-s1', 'hybrid-discriminative+freeze-s1', 'notes.txt'}
    assert {f.name for f in (runs/'32').iterdir()} == names
    envs = json.loads((runs/'32'/'baseline-uniform-s1'/'environment.json').read_text())
    assert all(e['commit'] == (work/'commit.txt').read_text() for e in envs)
    assert {f.name for f in tables.iterdir()} == {'steps.csv', 'parity.csv'}
    assert pd.read_csv(tables/'parity.csv').right.all()
    steps = sorted(pd.read_csv(tables/'steps.csv').step)
    assert steps == ['kernels/simam', 'study/baseline-s1', 'study/hybrid-s1']
    before = {f: f.stat().st_mtime_ns for f in runs.rglob('*')}
    merge(results, runs, tables)  # twice is once
    assert before == {f: f.stat().st_mtime_ns for f in runs.rglob('*')}


def test_the_parts(packed, tmp_path):
    for part in packed.glob('*.tar.gz'):
        unpack_tar(part, tmp_path)
    assert len(list((tmp_path/'data').rglob('*.JPEG'))) == 1530 and (tmp_path/'data'/'wnids.txt').exists()
    weights = torch.load(tmp_path/'weights.pth', weights_only=True)
    assert {k: v.dtype for k, v in weights['state_dict'].items()} == {'conv': torch.float16, 'norm': torch.float32}
    assert weights['source'] == 'npm, stored in 16 bits'


stub = '''import os, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
(out/'kernels').write_text(os.environ.get('SIMAM_EMA_KERNELS', 'auto'))
if 'fails' in sys.argv: sys.exit('no memory left')
try: time.sleep(99 if 'sleeps' in sys.argv else 0)
except KeyboardInterrupt: (out/'saved').touch(); sys.exit(130)
'''
plan = '''from collections import namedtuple
Stage = namedtuple('Stage', 'name commands seconds jobs least needs_data', defaults=(2, 0, False))
stages = [
'''

@pytest.fixture
def machine(packed, tmp_path):
    "A machine with everything unpacked, whose commands are stand-ins: run it with these stages."
    work, pack = tmp_path/'work', tmp_path/'pack'
    (work/'site'/'simam_ema_fastai').mkdir(parents=True)
    pack.mkdir()
    shutil.copy(packed/'sitting.py', pack)
    (pack/'parts.json').write_text('{}')
    (work/'site'/'simam_ema_fastai'/'__main__.py').write_text(stub)
    (work/'commit.txt').write_text('abc')
    def run(stages, *args):
        (work/'plan.py').write_text(f'{plan}{stages}]')
        p = sitting(pack, work, *args)
        text, _ = p.communicate()
        return p.returncode, text
    run.work = work
    return run


def test_kernels_that_are_wrong(machine):
    "The sitting goes on with the plain gates and says so; what the check found is kept, and not tried again."
    (machine.work/'gpu_check.py').write_text('import sys; print("parity ema False"); sys.exit(1)')
    stages = """Stage('kernels', {'ema': 'gpu_check --out {out}'}, 60),
                Stage('study', {'a': 'train --out {out}'}, 60)"""
    status, text = machine(stages, 90)
    assert status == 0 and 'kernels/ema: status 1' in text and 'plain gates from here on parity ema False' in text, text
    assert (machine.work/'steps'/'study'/'a'/'kernels').read_text() == 'plain'
    assert machine(stages, 90) == (0, '')


def test_time_is_over(machine):
    "What runs is interrupted as by Ctrl-C, and tried again; what cannot end is not begun; a stage has its own limit."
    stages = """Stage('cost', {'a': 'x sleeps --out {out}', 'b': 'x fails --out {out}'}, 4),
                Stage('study', {'c': 'x --out {out}'}, 60), Stage('late', {'d': 'x --out {out}'}, 60, 1, 45)"""
    status, text = machine(stages, 65)
    assert status == 3 and 'cost/b: status 1 after' in text and 'no memory left' in text, text
    assert 'cost/a: status 130' in text and (machine.work/'steps'/'cost'/'a'/'saved').exists(), text
    assert 'study/c: status 0' in text and 'late' not in text, text
    status, text = machine(stages, 100, 'late')
    assert status == 0 and text.startswith('late/d: status 0'), text
    assert machine(stages, 20, 'cost') == (3, '')  # no time for anything


def test_two_at_a_time_are_refused(machine):
    (machine.work/'steps').mkdir()
    with open(machine.work/'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, text = machine('', 60)
    assert status == 1 and 'BlockingIOError' in text


def test_what_is_not_believed(gpu, tmp_path):
    check, run = gpu('merge').check, tmp_path/'run'
    def write(top1=50., epochs=2):
        run.mkdir(exist_ok=True)
        (run/'config.json').write_text(json.dumps(dict(recipe=dict(epochs=2))))
        (run/'metrics.json').write_text(json.dumps(dict(n=4, top1=top1, top5=75.)))
        (run/'history.csv').write_text('epoch\n' + '\n'.join(map(str, range(epochs))))
        (run/'predictions.csv').write_text('file,true,pred1,pred2\na,0,0,1\nb,1,1,0\nc,2,0,2\nd,2,0,1\n')
    write()
    check(run)
    for change, line in [(dict(top1=70.), 'top1 by predictions is 50.000, not 70.000'),
                         (dict(epochs=1), r'epochs \[0\] of 2')]:
        write(**change)
        with pytest.raises(UserError, match=line): check(run)


def test_the_plan(gpu):
    "Every command is one that the package takes, with a folder of its own; what needs no data comes first."
    from simam_ema_fastai.cli import commands
    stages = gpu('plan').stages
    assert [s.name for s in stages][:4] == ['kernels', 'bandwidth', 'cost', 'study']
    for s in stages:
        for command in s.commands.values():
            first, *rest = command.format(data='D', weights='W', out='O').split()
            if first != 'gpu_check': assert commands[first].parse(rest)['out'] == 'O'
            assert s.needs_data == ('D' in rest)
