"""What a long training meets: kill -9, Ctrl-C, a full disk, a damaged checkpoint, a second process.

Every case ends with the weights of an undisturbed run."""
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest
import torch
from forked import Forked, at_batch, files_limited, killed_writing, spared, worker_killed
from safetensors.torch import load_file

from simam_ema_fastai.experiments.runs import failures

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='kills by POSIX signals')

baseline, hybrid = 'baseline-uniform-s1', 'hybrid-discriminative+freeze-s1'
spare = [(spared, 'measure', 'report')]


@pytest.fixture(scope='module')
def forked(tmp_path_factory):
    return Forked(tmp_path_factory.mktemp('output'))


@pytest.fixture(scope='module')
def args():
    "Three epochs of two batches, validated on 30 images."
    return ['--data', 'digits', '--arch', 'resnet18', '--weights', 'none', '--n-train', 64, '--n-valid', 30, '--bs', 32,
            '--epochs', 3, '--freeze-epochs', 1]


@pytest.fixture(scope='module')
def ablation(args): return ['ablate', '--variants', 'baseline,hybrid', *args, '--out']


@pytest.fixture(scope='module')
def training(args): return ['train', '--variant', 'baseline', *args, '--out']


@pytest.fixture(scope='module')
def undisturbed(forked, ablation, tmp_path_factory):
    "The folder, and the seconds it took."
    out = tmp_path_factory.mktemp('undisturbed')
    assert forked('--version')[0] == 0  # the imports
    start = time.time()
    status, _, err = forked(*ablation, out)
    assert (status, err) == (0, '')
    return out, time.time() - start


def assert_same(out, other, *runs):
    for r in runs:
        a, b = (load_file(o/r/'model.safetensors') for o in (out, other))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        assert pd.read_csv(out/r/'predictions.csv').equals(pd.read_csv(other/r/'predictions.csv'))
        assert pd.read_csv(out/r/'history.csv').epoch.tolist() == pd.read_csv(other/r/'history.csv').epoch.tolist()
        m, n = (json.loads((o/r/'metrics.json').read_text()) for o in (out, other))
        assert all(m[k] == n[k] for k in ('n', 'loss', 'top1', 'top5', 'k', 'epochs'))
        assert not [*(out/r).glob('checkpoint*')] and not leftovers(out)


def leftovers(out): return [f for f in out.rglob('.*')]


def one_line(err, says):
    lines = [l for l in err.splitlines() if not l.startswith('simam_ema: warning')]
    assert len(lines) == 1 and lines[0].startswith('simam_ema: ') and says in lines[0], err
    return lines[0]


def test_kill_9_twenty_times(forked, ablation, tmp_path, undisturbed):
    """Killed twenty times, at random moments and in the middle of random writes, from the first image to the report;
    in another folder again if it gets through before."""
    reference, seconds = undisturbed
    rng, inside, kills, through = random.Random(0), 0, 0, 0
    writes = [('*.pth', 1, 'half'), *(('*', n, when) for n in (3, 4, 5) for when in ('before', 'after'))]
    while kills < 20:
        out, status = tmp_path/f'{through}', None
        while status != 0:
            spared_this_time, in_write = kills >= 20, rng.random() < .7
            death = (killed_writing, *rng.choice(writes))
            deaths = [death] if in_write and not spared_this_time else []
            p = forked.start(*ablation, out, faults=[(spared, 'measure'), *deaths])
            p.join(300 if in_write or spared_this_time else rng.uniform(.02, .2)*seconds)
            if p.exitcode is None: p.kill(); p.join()
            status = p.exitcode
            assert status in (0, -signal.SIGKILL), p.texts()
            if status: kills, inside = kills + 1, inside + in_write
        assert_same(out, reference, baseline, hybrid)
        assert (out/'report'/'report.html').exists()
        through += 1
    print(f'{kills} kills, {inside} of them inside a write, in {through} ablation(s)')
    assert inside >= 8


def test_killed_when_all_is_written(forked, ablation, tmp_path, undisturbed):
    "What the run had not cleared away yet goes when it is met as done."
    command = [*ablation[:2], 'baseline', *ablation[3:], tmp_path]
    status, *texts = forked(*command, faults=[*spare, (killed_writing, 'metrics.json', 1, 'after')])
    assert status == -signal.SIGKILL and (tmp_path/baseline/'.lock').exists(), texts
    status, out, err = forked(*command, faults=spare)
    assert status == 0 and f'{baseline}: done before' in out, out + err
    assert_same(tmp_path, undisturbed[0], baseline)


def stopped_after(forked, command, out, epochs):
    "A training that was killed when so many epochs were done."
    status, *texts = forked(*command, out, faults=[*spare, (killed_writing, 'history.csv', epochs, 'after')])
    assert status == -signal.SIGKILL, texts
    return out/baseline/'checkpoint.pth', out/baseline/'checkpoint.previous.pth'


def test_damaged_checkpoint(forked, training, tmp_path, undisturbed):
    newest, before = stopped_after(forked, training, tmp_path/'a', 2)
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    with open(newest, 'r+b') as f:  # one bit
        f.seek(newest.stat().st_size//2); byte = f.read(1)[0]
        f.seek(-1, 1); f.write(bytes([byte ^ 1]))
    status, out, err = forked(*training, tmp_path/'a', faults=spare)
    assert status == 0 and 'Going on from the one before.\n  going on after epoch 1 of 3' in out, out + err
    assert f'{newest} is damaged: its contents do not match' in out
    assert_same(tmp_path/'a', undisturbed[0], baseline)

    for f in ('checkpoint.pth', 'checkpoint.previous.pth'): os.truncate(tmp_path/'b'/baseline/f, 10_000_000)
    status, out, err = forked(*training, tmp_path/'b', faults=spare)
    assert status == 0 and 'There is none before it: starting anew.' in out and 'going on after' not in out, out + err
    assert_same(tmp_path/'b', undisturbed[0], baseline)


def test_damaged_config_is_named(forked, training, tmp_path):
    stopped_after(forked, training, tmp_path, 1)
    os.truncate(tmp_path/baseline/'config.json', 20)
    status, _, err = forked(*training, tmp_path, faults=spare)
    assert status == 2 and one_line(err, 'config.json is damaged')


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 500 MB in memory, and a function that leaves so many MB of it free for the run."
    disk = tmp_path/'disk'
    disk.mkdir()
    r = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=500m', 'none', disk], capture_output=True, text=True)
    if r.returncode: pytest.skip(f'no disk can be mounted here: {r.stderr.strip()}')
    def leave(mb):
        (disk/'ballast').touch()
        os.truncate(disk/'ballast', 0)
        filled = os.statvfs(disk).f_bavail*4096 - used(disk/'run', mb)
        with open(disk/'ballast', 'wb') as f: os.posix_fallocate(f.fileno(), 0, filled)
    def used(folder, mb):
        return max(0, int(mb*1e6) - sum(f.stat().st_blocks*512 for f in folder.rglob('*') if f.is_file()))
    yield disk/'run', leave
    subprocess.run(['umount', disk])


def test_disk_full(forked, training, small_disk, undisturbed):
    """With room for less and less than it takes; then there is room.

    A checkpoint is 134 MB, the weights are 45, the exported learner another 45."""
    out, leave = small_disk
    def fails(mb, *there):
        leave(mb)
        status, said, err = forked(*training, out, faults=spare)
        assert status == 2 and one_line(err, 'no space left to write'), said + err
        assert not leftovers(out) and {f.name for f in out.glob('*/*')} == set(there), mb
    epoch = ['config.json', 'environment.json', 'checkpoint.pth', 'history.csv']
    evaluated = [*epoch, 'checkpoint.previous.pth', 'efficiency.json', 'predictions.csv', 'per_class.csv',
                 'calibration.csv']
    fails(0)
    fails(60, 'config.json', 'environment.json')
    fails(200, *epoch)
    fails(360, *epoch, 'checkpoint.previous.pth')
    leave(490)
    stopped_after(forked, training, out, 2)  # written when going on, and after the third epoch
    fails(290, *evaluated)
    fails(340, *evaluated, 'README.md', 'model.json', 'model.safetensors')
    leave(490)
    assert forked(*training, out, faults=spare)[0] == 0
    assert_same(out, undisturbed[0], baseline)


def test_disk_full_while_reporting(forked, training, small_disk):
    out, leave = small_disk
    leave(490)
    assert forked(*training, out, '--epochs', 1, faults=spare)[0] == 0
    leave(0)
    status, said, err = forked('report', out)
    assert status == 2 and one_line(err, 'no space left to write') and not leftovers(out), said + err
    leave(490)
    assert forked('report', out)[0] == 0


def test_file_too_large(forked, training, tmp_path, undisturbed):
    "Files may not grow beyond 20 MB, so the checkpoint cannot be written."
    status, out, err = forked(*training, tmp_path, faults=[*spare, (files_limited, 20_000_000)])
    assert status == 2 and one_line(err, 'no space left to write') and not leftovers(tmp_path), out + err
    assert forked(*training, tmp_path, faults=spare)[0] == 0
    assert_same(tmp_path, undisturbed[0], baseline)


def test_worker_killed(forked, training, tmp_path):
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    command = [*training[:-1], '--workers', 1, '--epochs', 2, '--out']
    assert forked(*command, whole, faults=spare)[0] == 0
    status, out, err = forked(*command, killed, faults=[*spare, (worker_killed, killed/baseline/'history.csv')])
    assert status == 2 and one_line(err, 'was killed'), out + err
    shutil.copytree(killed, tmp_path/'fewer')
    goes_on = 'going on after epoch 1'
    for folder, workers, said in [(killed, 1, goes_on), (tmp_path/'fewer', 0, goes_on), (killed, 0, 'done before')]:
        status, out, err = forked(*command, folder, '--workers', workers, faults=spare)  # fewer, as the line advises
        assert status == 0 and said in out, out + err
    assert_same(killed, whole, baseline)


@pytest.mark.parametrize('what, says', [
    (float('nan'), 'from batch 2 of epoch 2 on: use a lower --lr than 0.001, in another folder. '
                   'The last good state, after epoch 1, is kept in'),
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'),
     ' of 32×32 pixels in a batch: use a smaller --bs (say 16) or --size')], ids=['nan', 'memory'])
def test_last_good_state_is_kept(forked, training, tmp_path, undisturbed, what, says):
    status, out, err = forked(*training, tmp_path, faults=[*spare, (at_batch, 1, 1, what)])
    assert status == 2 and one_line(err, says), out + err
    status, out, err = forked(*training, tmp_path, faults=spare)
    assert status == 0 and 'going on after epoch 1 of 3' in out, out + err
    assert_same(tmp_path, undisturbed[0], baseline)


def test_one_run_of_a_grid_fails(forked, ablation, tmp_path, undisturbed):
    "It alone is not finished, and says why; the same command tries it again."
    status, out, err = forked(*ablation, tmp_path, faults=[*spare, (at_batch, 0, 1, float('nan'), 'baseline')])
    assert status == 2 and 'from batch 2 of epoch 1 on' in one_line(err, f'{baseline}: the loss '), out + err
    assert_same(tmp_path, undisturbed[0], hybrid)
    assert failures(tmp_path) == {baseline: err.strip().partition(f'{baseline}: ')[2]}
    assert forked(*ablation, tmp_path, faults=spare)[0] == 0 and not failures(tmp_path)
    assert_same(tmp_path, undisturbed[0], baseline, hybrid)


def test_diverging_learning_rate(forked, training, tmp_path):
    status, out, err = forked(*training, tmp_path, '--lr', '1e30', faults=spare)
    assert status == 2 and one_line(err, 'of epoch 1 on: use a lower --lr than 1e+30'), out + err
    assert not (tmp_path/baseline/'checkpoint.pth').exists()


def wait_for(file, process):
    while not file.exists():
        assert process.exitcode is None, process.texts()
        time.sleep(.01)


def test_second_process_is_refused(forked, training, ablation, tmp_path, undisturbed):
    "It is told whose folder it is; the first goes on, and killed it keeps nobody out."
    first = forked.start(*training, tmp_path, faults=spare)
    wait_for(tmp_path/baseline/'history.csv', first)
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot end meanwhile
    for command in (training, ablation):
        status, _, err = forked(*command, tmp_path, faults=spare)
        who = f'another process (pid {first.pid} on {platform.node()})'
        assert status == 2 and one_line(err, f'{who} is working in {tmp_path}: wait for it, or choose another folder.')
    first.kill(); first.join()
    status, out, err = forked(*training, tmp_path, faults=spare)
    assert status == 0 and 'going on after epoch' in out, out + err
    assert_same(tmp_path, undisturbed[0], baseline)


def test_ctrl_c(simam_ema, forked, training, tmp_path, undisturbed):
    "The installed command, as in a terminal."
    p = simam_ema.start(*training, tmp_path)
    while not (tmp_path/baseline/'history.csv').exists():
        assert p.poll() is None, p.communicate()
        time.sleep(.02)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'The same command goes on' in err and 'Traceback' not in err, err
    assert not leftovers(tmp_path)
    assert forked(*training, tmp_path, faults=spare)[0] == 0
    assert_same(tmp_path, undisturbed[0], baseline)


def test_other_settings_are_refused(forked, training, undisturbed):
    out = undisturbed[0]
    content = lambda: {f: f.read_bytes() for f in out.rglob('*') if f.is_file()}
    before = content()
    status, _, err = forked(*training, out, '--wd', '.3', faults=spare)
    assert status == 2 and one_line(err, 'recipe.wd 0.01 (now 0.3)')
    assert content() == before
