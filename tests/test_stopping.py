"What only `train` does: early stopping, the best epoch, accumulated and clipped gradients."
import json
import signal
import time

import pandas as pd
import pytest
import safetensors.torch
import torch

one = ['--no-report', '--variant', 'hybrid', '--schedule', 'flat', '--lr', .02]


def training(simam_ema, digits_args, out, *args):
    status, printed, err = simam_ema('train', *one, *digits_args, *args, '--out', out)
    assert status == 0, err
    run = next(out.glob('*/metrics.json')).parent
    return json.loads((run/'metrics.json').read_text()), pd.read_csv(run/'history.csv'), run, printed


def test_a_training_stops_and_keeps_its_best_epoch(simam_ema, digits_args, tmp_path):
    "The gates' frozen epoch does not count; the report of an early end does not wait for epochs that never come."
    metrics, history, run, printed = training(simam_ema, digits_args, tmp_path, '--epochs', 30, '--patience', 2,
                                              '--best-epoch', '--accumulate', 2, '--clip', 1)
    losses, best = history.valid_loss, history.valid_loss.idxmin()
    assert len(history) == metrics['epochs'] < 30 and len(history) - 1 - best >= 2
    assert metrics['best_epoch'] == best + 1 and abs(metrics['loss'] - losses[best]) < 1e-4
    assert abs(metrics['top1']/100 - history.accuracy[best]) < 1e-6 and 'stopped early' in printed
    settings = json.loads((run/'config.json').read_text())['recipe']
    assert [settings[k] for k in ('patience', 'best_epoch', 'accumulate', 'clip')] == [2, True, 2, 1.]
    assert simam_ema('train', *one, *digits_args, '--epochs', 30, '--patience', 2, '--best-epoch', '--accumulate', 2,
                     '--clip', 1, '--out', tmp_path)[0] == 0, 'done before'
    assert simam_ema('report', tmp_path, '--no-pictures')[0] == 0
    assert 'at the best epoch, which these images chose' in (tmp_path/'report'/'report.html').read_text()


def test_killed_it_ends_as_if_it_had_not_been(simam_ema, digits_args, tmp_path):
    args = ['--epochs', 12, '--patience', 2, '--best-epoch', '--accumulate', 2, '--average', .5]
    whole, history, run, _ = training(simam_ema, digits_args, tmp_path/'whole', *args)
    p = simam_ema.start('train', *one, *digits_args, *args, '--out', tmp_path/'killed')
    deadline = time.monotonic() + 120
    while not (found := list((tmp_path/'killed').glob('*/history.csv'))) or len(pd.read_csv(found[0])) < 3:
        assert p.poll() is None and time.monotonic() < deadline, p.communicate()
        time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    again, resumed, other, _ = training(simam_ema, digits_args, tmp_path/'killed', *args)
    assert again['best_epoch'] == whole['best_epoch'] and len(resumed) == len(history)
    a, b = (safetensors.torch.load_file(r/'model.safetensors') for r in (run, other))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('args', [['--patience', 3], ['--best-epoch'], ['--accumulate', 2], ['--clip', 1]])
def test_a_comparison_does_not(simam_ema, digits_args, tmp_path, args):
    status, _, err = simam_ema('ablate', *digits_args, *args, '--out', tmp_path/'a')
    assert status == 2 and err.count('\n') == 1 and f'{args[0]}: a comparison trains every variant alike' in err, err
    assert not (tmp_path/'a').exists()


@pytest.mark.parametrize('args', [['--patience', -1], ['--accumulate', 0], ['--clip', 'nan']])
def test_what_cannot_be(simam_ema, digits_args, tmp_path, args):
    status, _, err = simam_ema('train', *digits_args, *args, '--out', tmp_path)
    assert status == 2 and err.count('\n') == 1 and args[0][2:] in err, err
