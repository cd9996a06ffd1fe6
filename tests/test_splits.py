"Held-out images, groups and folds, from the command line to the report."
import json

import numpy as np
import pandas as pd
import pytest

from simam_ema_fastai.core.files import read_json
from simam_ema_fastai.experiments.results import load_runs, read_predictions
from simam_ema_fastai.report.evidence import Evidence

few = ['--data', 'digits', '--n-classes', 3, '--arch', 'resnet18', '--weights', 'none', '--size', 32, '--epochs', 1,
       '--bs', 16]
names = [f'{v}-uniform-s1-f{k}' for k in (1, 2) for v in ('baseline', 'simam')]


@pytest.fixture(scope='module')
def folds(simam_ema, tmp_path_factory):
    "A cross-validation of two variants that was interrupted after its first run."
    out = tmp_path_factory.mktemp('folds')/'runs'
    def ablate(*more):
        return simam_ema('ablate', *few, '--n-train', 48, '--folds', 2, '--test-pct', 20, '--variants',
                         'baseline,simam', '--strategies', 'uniform', '--out', out, *more)
    status, _, err = ablate('--no-report', '--fold', 1)
    assert status == 0, err
    first = (out/names[0]/'metrics.json').stat().st_mtime_ns
    (out/names[1]/'metrics.json').unlink()  # as if that run had been stopped before its end
    status, said, err = ablate()
    assert status == 0, err
    assert f'{names[0]}: done before' in said and (out/names[0]/'metrics.json').stat().st_mtime_ns == first
    return out


def test_each_image_is_predicted_once(folds):
    assert {f.parent.name for f in folds.glob('*/metrics.json')} == {*names}
    runs = load_runs(folds)
    assert runs.run.tolist() == ['baseline-uniform-s1', 'simam-uniform-s1']
    all_of = [read_predictions(folds, r.folders) for r in runs.itertuples()]
    tested = {f for name in names for f in pd.read_csv(folds/name/'test_predictions.csv').file}
    for r, p in zip(runs.itertuples(), all_of):
        assert p.file.is_unique and len(p) == r.n and not tested & {*p.file}
        assert r.top1 == pytest.approx(100*(p.pred1 == p.true).mean())
    assert (all_of[0].file == all_of[1].file).all() and len(tested) + len(all_of[0]) == 537
    shares = all_of[0].true.value_counts(normalize=True)
    for k in (1, 2):
        part = pd.read_csv(folds/names[2*k-2]/'predictions.csv').true.value_counts(normalize=True)
        assert (part - shares).abs().max() < .02


def test_report_of_folds(folds):
    e = Evidence(folds)
    assert e.runs.test_n.unique().tolist() == [read_json(folds/names[0]/'metrics.json')['test_n']]
    about = {f.about: f for f in e.findings}
    assert not {'data differ', 'images differ', 'recipes differ', 'left out'} & {*about} and 'folds' in about
    page = (folds/'report'/'report.html').read_text(encoding='utf-8')
    assert 'test Top-1' in page and 'decided nothing' in page and '2 folds' in page
    assert e.diffs.verdict.tolist() == ['one seed']


def test_incomplete_folds_do_not_count(folds, tmp_path):
    import shutil
    shutil.copytree(folds, tmp_path/'runs')
    (tmp_path/'runs'/names[3]/'metrics.json').unlink()
    assert load_runs(tmp_path/'runs').run.tolist() == ['baseline-uniform-s1']
    assert any('1 of 2 folds are finished' in f.text for f in Evidence(tmp_path/'runs').findings)


def test_config_keeps_the_split(folds, simam_ema, tmp_path):
    "A run's settings make the run again, and its test images can be evaluated; another number of folds is refused."
    data = read_json(folds/names[0]/'config.json')['data']
    assert (data['folds'], data['fold'], data['test_pct']) == (2, 1, .2)
    status, said, err = simam_ema('evaluate', folds/names[0], '--test')
    top1 = read_json(folds/names[0]/'metrics.json')['test_top1']
    assert status == 0 and 'held out for the test' in said and f'Top-1 {top1:.2f}%' in said, said + err
    status, _, err = simam_ema('ablate', *few, '--n-train', 48, '--folds', 3, '--test-pct', 20, '--out', folds)
    assert status == 2 and 'data.folds 2 (now 3)' in err.splitlines()[-1]


def scans(folder, patients=6, each=4):
    "Images of two classes, several of each patient."
    draw = np.random.default_rng(0)
    from PIL import Image
    for p in range(patients):
        for c in 'ab':
            (folder/c).mkdir(parents=True, exist_ok=True)
            for i in range(each):
                Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(folder/c/f'p{p}_{i}.png')


@pytest.mark.parametrize('options, says', [
    (['--group', '(p[0-3])_'], "the group '(p[0-3])_' is missing from 16 of 48 paths"),
    (['--group', '^([ab])/'], "the class 'a' is in one group alone, 'a'"),
    (['--group', '(p[0-9]'], 'is no regular expression'),
    (['--folds', 25], "25 folds: the class 'a' has 24 images"),
    (['--folds', 7, '--group', '(p[0-9])_'], "7 folds: the class 'a' has 6 groups"),
    (['--folds', 1], 'folds 1: a whole number is needed, at least 2'),
    (['--folds', 3, '--fold', 4], 'fold 4: there are 3'), (['--test-pct', 0.2], '--test-pct 0.2: percent are wanted'),
    (['--columns', 'a,b'], 'folder is no table')])
def test_refused(tmp_path, simam_ema, options, says):
    scans(tmp_path/'data')
    args = ['--data', 'folder', '--path', tmp_path/'data', *few[4:], *options]
    status, _, err = simam_ema('ablate', *args, '--variants', 'baseline', '--out', tmp_path/'out')
    assert status == 2 and says in err.splitlines()[-1], err
    assert not list(tmp_path.glob('out/*/config.json'))


def test_a_table_is_trained_on(tmp_path, simam_ema):
    "With groups and a test split; near-duplicates between its parts are named, in the run and in the report."
    scans(tmp_path/'data')
    files = sorted((tmp_path/'data').rglob('*.png'))
    rows = [(f.relative_to(tmp_path).as_posix(), f.parent.name, 'test' if f.name[1] == '5' else 'train', f.name[:2])
            for f in files]
    table = pd.DataFrame(rows, columns=['scan', 'sign', 'part', 'patient'])
    table.to_csv(tmp_path/'labels.csv', index=False)
    from PIL import Image
    Image.open(tmp_path/'data/a/p0_0.png').save(tmp_path/'data/a/p5_0.png', compress_level=1)
    args = ['--data', 'csv', '--path', tmp_path/'labels.csv', '--columns', 'scan,sign,part,patient', *few[4:]]
    status, said, err = simam_ema('train', *args, '--variant', 'baseline', '--out', tmp_path/'out')
    assert status == 0, err
    run = tmp_path/'out'/'baseline-uniform-s1'
    assert read_json(run/'metrics.json')['test_n'] == 8
    assert json.loads((run/'config.json').read_text())['data']['columns'] == 'scan,sign,part,patient'
    valid, test = (pd.read_csv(run/f'{p}predictions.csv').file for p in ('', 'test_'))
    assert len({f.split('/')[-1][:2] for f in valid}) * 8 == len(valid) and all('p5_' in f for f in test)
    (near,) = pd.read_csv(run/'near_duplicates.csv').itertuples()
    assert {near.file, near.near} == {'a/p0_0.png', 'a/p5_0.png'} and near.part == 'test'
    assert 'test images that look like' in err
    assert any(f.about == 'near-duplicates' for f in Evidence(tmp_path/'out').findings)
