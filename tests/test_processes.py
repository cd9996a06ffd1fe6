"""Several processes, one training: the result of one process, the same after a kill, one line when one of them fails.

Processes are forked where possible, which saves their imports; one test takes the user's way, `accelerate launch`."""
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from forked import Forked, at_batch, evaluation_fails, one_of_two
from safetensors.torch import load_file

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.experiments.runs import failures

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='gloo and POSIX signals')

run_name = 'hybrid-discriminative+freeze-s1'


@pytest.fixture(scope='module')
def in_two(tmp_path_factory):
    "Exit statuses, outputs and errors of two processes that run `simam_ema ARGS`, with `faults` in the second."
    forked = Forked(tmp_path_factory.mktemp('output'))
    def in_two(*args, faults=()):
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
        def start(rank): return forked.start(*args, faults=[(one_of_two, rank, port), *(faults if rank else ())])
        started = [start(rank) for rank in range(2)]
        return tuple(zip(*(p.end(120) for p in started)))
    return in_two


@pytest.fixture(scope='module')
def args(digits_args): return [*digits_args, '--n-train', '128', '--n-valid', '51', '--epochs', '2']


@pytest.fixture(scope='module')
def launched(args, root, tmp_path_factory):
    "The run folder of a training that `accelerate launch` splits across two processes."
    out = tmp_path_factory.mktemp('launched')
    launch = [Path(sys.executable).with_name('accelerate'), 'launch', '--multi_gpu', '--num_processes', 2,
              '--num_machines', 1, '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', 0]
    env = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    command = map(str, [*launch, root/'scripts'/'train.py', *args, '--out', out])
    p = subprocess.run(command, capture_output=True, text=True, env=env)
    assert p.returncode == 0, p.stderr
    assert p.stdout.count('epoch 2/2') == 1, p.stdout
    return out/run_name


def weights(run): return load_file(run/'model.safetensors')


def test_equals_one_process(launched, args, simam_ema, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: assert simam_ema('train', *args, '--out', tmp_path)[0] == 0
    finally: torch.set_num_threads(threads)
    one, two = tmp_path/run_name, launched
    def read(name): return pd.read_csv(one/name), pd.read_csv(two/name)
    a, b = read('history.csv')
    assert (a[['train_loss', 'valid_loss']] - b[['train_loss', 'valid_loss']]).abs().max(None) < 1e-3
    a, b = read('predictions.csv')
    assert list(a.file) == list(b.file) and len(b) == 51 and (a.prob_true - b.prob_true).abs().max() < 1e-3
    assert {f.name for f in one.iterdir()} == {f.name for f in two.iterdir()}
    processes = [[e['processes'] for e in json.loads((r/'environment.json').read_text())] for r in (one, two)]
    assert processes == [[1], [2]]
    status, out, err = simam_ema('evaluate', two)  # the export is an ordinary learner
    assert status == 0 and '\n51 images: ' in out, out + err


@pytest.mark.parametrize('switch', ['--class-weights', '--sampling'])
def test_rare_classes_weigh_the_same_in_two(args, simam_ema, in_two, tmp_path, switch):
    more = [*args, switch, 'balanced', '--epochs', 1, '--freeze-epochs', 0, '--no-report']
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: assert simam_ema('train', *more, '--out', tmp_path/'one')[0] == 0
    finally: torch.set_num_threads(threads)
    statuses, _, errs = in_two('train', *more, '--out', tmp_path/'two')
    assert statuses == (0, 0), errs
    a, b = (pd.read_csv(tmp_path/d/run_name/'history.csv') for d in ('one', 'two'))
    assert abs(a.train_loss - b.train_loss).max() < 1e-3
    a, b = (pd.read_csv(tmp_path/d/run_name/'predictions.csv') for d in ('one', 'two'))
    assert (a.prob_true - b.prob_true).abs().max() < 1e-3


def test_evaluation_counts_every_image_once(launched, simam_ema, in_two, tmp_path):
    status, out, err = simam_ema('evaluate', launched, '--out', tmp_path/'one.csv')
    statuses, outs, errs = in_two('evaluate', launched, '--out', tmp_path/'two.csv')
    assert statuses == (0, 0) and errs == ('', ''), errs
    assert [o.splitlines()[:-1] for o in outs] == [out.splitlines()[:-1], []]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'one.csv'), pd.read_csv(tmp_path/'two.csv'), atol=1e-6)


def test_killed_and_continued(launched, args, in_two, tmp_path):
    statuses, _, errs = in_two('train', *args, '--out', tmp_path/'runs', faults=[(at_batch, 1, 0, signal.SIGKILL)])
    assert statuses == (2, -signal.SIGKILL), errs
    assert 'another process of this training was lost' in errs[0] and len(errs[0].splitlines()) == 1, errs
    assert (tmp_path/'runs'/run_name/'checkpoint.pth').exists()
    statuses, outs, errs = in_two('train', *args, '--out', tmp_path/'runs')
    assert statuses == (0, 0) and 'going on after epoch 1 of 2' in outs[0], outs[0] + errs[0]
    a, b = weights(launched), weights(tmp_path/'runs'/run_name)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


bad_image = UserError('7.png is no readable image.')

@pytest.mark.parametrize('more, faults, line', [
    (['--bs', 63], [], 'batch size 63, which all processes share, is not divisible by their number, 2'),
    ([], [(evaluation_fails, bad_image)], str(bad_image))])
def test_one_line_and_status_2(args, in_two, tmp_path, more, faults, line):
    command = ['train', *args, '--epochs', 1, '--freeze-epochs', 0, *more, '--out', tmp_path/'runs']
    statuses, _, errs = in_two(*command, faults=faults)
    said = ''.join(errs)
    assert statuses == (2, 2) and line in said and len(said.splitlines()) == 1, (statuses, errs)
    assert line in failures(tmp_path/'runs')[run_name]
