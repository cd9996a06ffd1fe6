"What a long training meets: kill -9, Ctrl-C, a full disk, a second process. Every case ends with the weights of an undisturbed run."
import json, random, resource, signal, time

import pandas as pd
import pytest
import torch

run_name = 'hybrid-discriminative+freeze-s1'


@pytest.fixture(scope='module')
def undisturbed(simam_ema, digits_args, tmp_path_factory):
    out = tmp_path_factory.mktemp('undisturbed')
    start = time.time()
    p = simam_ema.start('train', *digits_args, '--out', out)
    _, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    return out/run_name, time.time() - start


def assert_same(run, other):
    state = lambda r: torch.load(r/'weights.pth', weights_only=True)['state_dict']
    a, b = state(run), state(other)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert pd.read_csv(run/'predictions.csv').equals(pd.read_csv(other/'predictions.csv'))
    assert pd.read_csv(run/'history.csv').epoch.tolist() == [0, 1, 2]
    m, n = (json.loads((r/'metrics.json').read_text()) for r in (run, other))
    assert all(m[k] == n[k] for k in ('n', 'loss', 'top1', 'top5', 'k', 'epochs'))


def no_leftovers(run): return not [f for f in run.iterdir() if f.name.startswith('.')]


def test_kill_9(simam_ema, digits_args, tmp_path, undisturbed):
    "Killed at random moments of a whole run, from the import to the export, until it gets through."
    reference, seconds = undisturbed
    rng, kills = random.Random(0), 0
    while kills < 4:
        p = simam_ema.start('train', *digits_args, '--out', tmp_path)
        time.sleep(rng.uniform(.1, .6)*seconds)
        if p.poll() is not None: break
        p.kill(); p.communicate(); kills += 1
    status, out, err = simam_ema('train', *digits_args, '--out', tmp_path)
    assert status == 0 and kills > 0, err
    assert_same(tmp_path/run_name, reference)
    assert no_leftovers(tmp_path/run_name) and not (tmp_path/run_name/'checkpoint.pth').exists()


def wait_for(file, process):
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(.02)


def test_kill_9_between_epochs_resumes(simam_ema, digits_args, tmp_path, undisturbed):
    p = simam_ema.start('train', *digits_args, '--out', tmp_path)
    wait_for(tmp_path/run_name/'history.csv', p)
    p.kill(); p.communicate()
    status, out, err = simam_ema('train', *digits_args, '--out', tmp_path)
    assert status == 0 and 'going on after epoch' in out, out + err
    assert_same(tmp_path/run_name, undisturbed[0])


def test_ctrl_c(simam_ema, digits_args, tmp_path, undisturbed):
    p = simam_ema.start('train', *digits_args, '--out', tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a job in the background ignores it
    wait_for(tmp_path/run_name/'history.csv', p)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'The same command goes on' in err and 'Traceback' not in err, err
    assert no_leftovers(tmp_path/run_name)
    assert simam_ema('train', *digits_args, '--out', tmp_path)[0] == 0
    assert_same(tmp_path/run_name, undisturbed[0])


def test_no_space_left(simam_ema, digits_args, tmp_path, undisturbed):
    "Files may not grow beyond 20 MB, so the checkpoint cannot be written: the same error path as a full disk."
    limit = lambda: (resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)), signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
    p = simam_ema.start('train', *digits_args, '--out', tmp_path, preexec_fn=limit)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 2 and 'no space left' in err and 'Traceback' not in err, err
    assert no_leftovers(tmp_path/run_name)
    assert simam_ema('train', *digits_args, '--out', tmp_path)[0] == 0
    assert_same(tmp_path/run_name, undisturbed[0])


def test_second_process_is_refused(simam_ema, digits_args, tmp_path):
    p = simam_ema.start('train', *digits_args, '--out', tmp_path)
    wait_for(tmp_path/run_name/'config.json', p)
    status, _, err = simam_ema('train', *digits_args, '--out', tmp_path)
    p.kill(); p.communicate()
    assert status == 2 and 'another process is working' in err, err


def test_other_settings_are_refused(simam_ema, digits_args, undisturbed):
    run = undisturbed[0]
    before = {f.name: f.read_bytes() for f in run.iterdir() if f.is_file()}
    status, _, err = simam_ema('train', *digits_args, '--wd', '.3', '--out', run.parent)
    assert status == 2 and 'recipe.wd 0.01 (now 0.3)' in err, err
    assert {f.name: f.read_bytes() for f in run.iterdir() if f.is_file()} == before
