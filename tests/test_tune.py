"The same search for every variant, and then each at its best, through the command line."
import json
import signal
import time

import numpy as np
import pytest
from PIL import Image

digits = ['--data', 'digits', '--arch', 'resnet18', '--weights', 'none', '--n-train', 64, '--n-valid', 50,
          '--epochs', 1, '--bs', 16, '--variants', 'baseline,ema']
space = ['--space', 'lr=1e-3:1e-1:log', 'bs=8,16', 'start=published,identity']


def trials(out):
    "What `search.json` holds, without times."
    found = json.loads((out/'search.json').read_text())['trials']
    return [{k: v for k, v in t.items() if k != 'seconds'} for t in found]


def test_interrupted_it_finds_the_same(simam_ema, tmp_path):
    "Ctrl-C in a trial: the same command goes on, finds what it would have found, and trains each at its best."
    once = ['tune', *digits, *space, '--trials', 2, '--no-report']
    p = simam_ema.start(*once, '--out', tmp_path/'a')
    deadline = time.monotonic() + 300
    while not (tmp_path/'a'/'search.json').exists() or len(trials(tmp_path/'a')) < 2:
        assert p.poll() is None and time.monotonic() < deadline, p.communicate()
        time.sleep(.05)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'The same command goes on from what' in err and 'Traceback' not in err, err
    assert 2 <= len(trials(tmp_path/'a')) < 4
    status, out, err = simam_ema(*once, '--out', tmp_path/'a')
    assert status == 0 and 'going on after' in out, err
    assert simam_ema(*once, '--out', tmp_path/'b', '--no-common')[0] == 0
    found = trials(tmp_path/'a')
    assert found == trials(tmp_path/'b') and not (tmp_path/'b'/'common').exists()

    first, again = ([t['settings'] for t in found if t['variant'] == v] for v in ('baseline', 'ema'))
    assert [{k: v for k, v in s.items() if k != 'start'} for s in again] == first, 'the same points'
    best = {v: max((t for t in found if t['variant'] == v), key=lambda t: t['values'][-1]) for v in ('baseline', 'ema')}
    configs = [json.loads(f.read_text()) for f in (tmp_path/'a').glob('*/config.json')]
    assert len(configs) == 2 and len(list((tmp_path/'a'/'common').glob('*/metrics.json'))) == 2
    for c in configs:
        number, settings = (best[c['variant']][k] for k in ('number', 'settings'))
        assert (c['tuned']['trial'], c['tuned']['of'], c['recipe']['lr']) == (number, 2, settings['lr'])
        assert (c['overrides'] or {}).get('start') == settings.get('start')
    assert simam_ema('report', tmp_path/'a', '--no-pictures')[0] == 0
    page = (tmp_path/'a'/'report'/'report.html').read_text()
    assert 'Each at its best' in page and 'the verdict on ema' in page and 'not comparable' not in page
    status, _, err = simam_ema(*once, '--trials', 3, '--out', tmp_path/'a')
    assert status == 2 and 'more trials may find others' in err, err


@pytest.fixture
def parts(tmp_path):
    "Red, green and blue images to train on, to validate and to test."
    rng = np.random.default_rng(0)
    for part, n in dict(train=16, valid=4, test=4).items():
        for c in range(3):
            (tmp_path/'d'/part/'rgb'[c]).mkdir(parents=True)
            for i in range(n):
                im = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                im[..., c] += 30
                Image.fromarray(im).save(tmp_path/'d'/part/'rgb'[c]/f'p{i//2}_{i}.png')
    return tmp_path/'d'


def test_it_sees_training_images_alone_in_whole_groups(simam_ema, parts, tmp_path):
    "Other validation and test images, the same search; what judges it are whole groups of training images."
    args = ['tune', '--data', 'folder', '--path', parts, '--size', 32, '--arch', 'resnet18', '--weights', 'none',
            '--bs', 8, '--epochs', 1, '--variants', 'baseline', '--trials', 2, '--holdout', 25, '--metric', 'auroc',
            '--no-report', '--no-common', '--space', 'lr=1e-3:1e-2']
    assert simam_ema(*args, '--out', tmp_path/'a')[0] == 0
    for f in [*parts.glob('valid/*/*'), *parts.glob('test/*/*')]:
        Image.fromarray(255 - np.asarray(Image.open(f))).save(f)
    status, out, err = simam_ema(*args, '--out', tmp_path/'b')
    assert status == 0 and 'trained on 36 of the training images, judged on 12 by AUROC' in out, err
    assert trials(tmp_path/'a') == trials(tmp_path/'b')
    one, other = (json.loads(next((tmp_path/x).glob('*/metrics.json')).read_text()) for x in 'ab')
    assert one['loss'] != other['loss'], 'the runs see them'
    for f in parts.rglob('*.png'): f.rename(f.with_name(f'{f.parent.parent.name}{f.name}'))
    status, out, err = simam_ema(*args, '--group', '((?:train|valid|test)p[0-9]+)_', '--out', tmp_path/'c')
    assert status == 0 and 'trained on 36 of the training images, judged on 12' in out, err


@pytest.mark.parametrize(('args', 'says'), [
    (['--trials', 0], 'trials 0: at least 1'), (['--space', ''], 'the search space is empty'),
    (['--space', 'bs=16'], 'the search space is empty'), (['--space', 'rand_augmant=1:9'], "mean 'rand_augment'"),
    (['--space', 'lr=1e-2:1e-4'], 'lr=1e-2:1e-4: the range is upside down'),
    (['--space', 'bs=16,512'], 'bs=16,512: 54 images are left to train on'), (['--holdout', 0], '--holdout 0: percent'),
    (['--n-train', 12], 'has one training image: a search holds a part'), (['--folds', 3], 'unrecognized'),
    (['--best-epoch'], '--best-epoch: a comparison'), (['--metric', 'acuracy'], "unknown metric 'acuracy'"),
    (['--variants', ''], 'nothing to do')])
def test_what_cannot_be_searched(simam_ema, tmp_path, args, says):
    status, _, err = simam_ema('tune', *digits, *args, '--out', tmp_path/'a')
    assert status == 2 and err.count('\n') == 1 and says in err, err
    assert not (tmp_path/'a').exists()


def test_another_search_is_left_as_it_is(simam_ema, tmp_path):
    "Other data, variants or another space; a damaged file; and optuna that is not installed."
    once = ['tune', *digits, '--variants', 'baseline', '--trials', 1, '--no-report', '--no-common',
            *space]
    assert simam_ema(*once, '--out', tmp_path)[0] == 0
    file = tmp_path/'search.json'
    before = file.read_text()
    for args, says in ((['--n-train', 60], 'data.n_train 64 (now 60)'),
                       (['--variants', 'ema'], "variants ['baseline'] (now ['ema'])"),
                       (['--space', 'lr=1:2'], 'with space.lr 0.001:0.1:log (now 1:2)'), (['--wd', .1], 'recipe.wd')):
        status, _, err = simam_ema(*once, *args, '--out', tmp_path)
        assert status == 2 and err.count('\n') == 1 and says in err, err
    assert file.read_text() == before
    file.write_text(before[:100])
    status, _, err = simam_ema(*once, '--out', tmp_path)
    assert status == 2 and 'search.json is damaged' in err and file.read_text() == before[:100]


def test_without_optuna(simam_ema, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'optuna', None)
    status, _, err = simam_ema('tune', *digits, '--out', tmp_path/'a')
    assert status == 2 and "optuna is needed for this: pip install 'simam_ema_fastai[tune]'" in err
