"What a comparison is judged by: the metric and the margin, from the command line to the report."
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as skm

from simam_ema_fastai.experiments.results import load_runs
from simam_ema_fastai.report.evidence import Evidence
from simam_ema_fastai.report.fake import fake_grid, fake_run
from simam_ema_fastai.training.metrics import class_scores

names = ('balanced_accuracy', 'macro_f1', 'kappa', 'auroc', 'average_precision')


@pytest.fixture(scope='module')
def grid(tmp_path_factory): return fake_grid(tmp_path_factory.mktemp('runs'))


def test_a_training_keeps_what_its_metrics_are_made_of(simam_ema, digits_args, tmp_path):
    status, out, err = simam_ema('train', *digits_args, '--epochs', 1, '--freeze-epochs', 0, '--no-report',
                                 '--variant', 'baseline', '--metric', 'auroc', '--margin', 2, '--out', tmp_path)
    assert status == 0 and 'AUROC' in out, out + err
    run = tmp_path/'baseline-uniform-s1'
    m, p = json.loads((run/'metrics.json').read_text()), pd.read_csv(run/'predictions.csv')
    scores = class_scores(p, 10)
    aurocs = [skm.roc_auc_score(p.true == c, scores[:,c]) for c in range(10)]
    assert np.isclose(m['auroc'], 100*np.mean(aurocs), atol=.01)
    assert np.isclose(m['balanced_accuracy'], 100*skm.balanced_accuracy_score(p.true, p.pred1))
    assert (scores[range(len(p)), p.pred1] == scores.max(1)).all()  # in 16 bits others may equal it
    plan = json.loads((tmp_path/'grid.json').read_text())
    assert (plan['metric'], plan['margin']) == ('auroc', 2.)
    e = Evidence(tmp_path)
    assert e.headline.startswith('baseline: AUROC ') and e.margin == 2


def test_runs_of_0_1_get_what_their_predictions_tell(grid, tmp_path):
    now, old = load_runs(grid), shutil.copytree(grid, tmp_path/'old')
    for f in old.glob('*/metrics.json'):
        f.write_text(json.dumps({k: v for k,v in json.loads(f.read_text()).items() if k not in names}))
        p = f.with_name('predictions.csv')
        p.write_text(pd.read_csv(p).drop(columns='scores').to_csv(index=False))
    then = load_runs(old)
    assert np.allclose(then[[*names[:3]]], now[[*names[:3]]]) and 'auroc' not in then  # two probabilities of four
    assert 'kappa' in Evidence(old).runs


def test_one_metric_through_the_whole_report(simam_ema, grid, tmp_path):
    status, out, err = simam_ema('report', grid, '--no-pictures', '--metric', 'balanced_accuracy', '--margin', 3,
                                 '--out', tmp_path)
    assert status == 0, out + err
    page, md = (re.sub('</?(a|abbr)[^>]*>', '', (tmp_path/f'report.{x}').read_text()) for x in ('html', 'md'))
    for text in (page, md):
        assert 'Judged by balanced accuracy' in text and 'no worse than the baseline' in text
        assert 'chosen by its result flatters' in text  # it was not noted before
    assert 'no worse than 3 points' in page and 'points of balanced accuracy' in page
    assert 'Top-5' not in md.split('![')[0]
    assert 'balanced accuracy' in (tmp_path/'tables.tex').read_text()
    df = pd.read_csv(tmp_path/'differences.csv')
    assert set(df.metric) == {'balanced_accuracy', 'top1', 'top5'}
    assert set(df[df.variant == 'simam'].query("metric != 'top5'").verdict) == {'no worse'}


@pytest.mark.parametrize('argv, line', [
    (('--metric', 'balanced'), "unknown metric 'balanced'. Did you mean 'balanced_accuracy'"),
    (('--metric', 'recall:e'), "unknown class 'e'"),
    (('--margin', 0), 'margin 0: points are wanted'), (('--margin', -1), 'margin -1: points are wanted')])
def test_what_is_refused_costs_one_line(simam_ema, grid, tmp_path, argv, line):
    status, _, err = simam_ema('report', grid, '--no-pictures', '--out', tmp_path/'out', *argv)
    assert status == 2 and line in err and err.count('\n') == 1 and not (tmp_path/'out').exists()
    if 'recall:e' in argv: return
    status, _, err = simam_ema('ablate', '--data', 'digits', '--out', tmp_path/'runs', *argv)
    assert status == 2 and line in err and not (tmp_path/'runs').exists()


def test_a_metric_that_needs_two_classes(simam_ema, tmp_path):
    run = fake_run(tmp_path, 'baseline', 'uniform', 1, .7), fake_run(tmp_path, 'ema', 'uniform', 1, .7)
    for r in run:
        p = pd.read_csv(r/'predictions.csv')
        (r/'predictions.csv').write_text(p.assign(true=0).to_csv(index=False))
    for metric in ('auroc', 'kappa', 'average_precision'):
        status, _, err = simam_ema('report', tmp_path, '--no-pictures', '--metric', metric)
        assert status == 2 and 'needs images of two classes: all 1500 show a' in err and err.count('\n') == 1
